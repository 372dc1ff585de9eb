"""Completion of the command's words by the user's shell: ``--install-completion``, ``--show-completion``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sublet.cli.messages import say
from sublet.errors import UsageError

if TYPE_CHECKING:
    from click.shell_completion import ShellComplete

VARIABLE: Final = "_SUBLET_COMPLETE"
"""Set by the shell's script: what the command is to tell it."""


@dataclass(frozen=True)
class _Place:
    """Where a shell looks, relative to the user's home."""

    script: str
    startup: str | None
    """The file that has to name the script; None: the shell finds it."""
    line: str = ""


_PLACES: Final = {
    "bash": _Place(".bash_completions/sublet.sh", ".bashrc", "source ~/.bash_completions/sublet.sh"),
    "zsh": _Place(".zfunc/_sublet", ".zshrc", "fpath+=~/.zfunc; autoload -Uz compinit; compinit"),
    "fish": _Place(".config/fish/completions/sublet.fish", None),
}


def answer(command: click.Command) -> bool:
    """Tell the shell what could come next, if it is a shell's script that called."""
    instruction = os.environ.get(VARIABLE)
    if not instruction:
        return False
    shell, _, wish = instruction.partition("_")
    if wish == "complete" and shell in _PLACES:
        click.echo(_completer(command, shell).complete())
    return True


def show(command: click.Command) -> None:
    """Print the script of the shell that called."""
    click.echo(_completer(command, _shell()).source())


def install(command: click.Command) -> None:
    """Put the script of the shell that called where that shell finds it.

    Raises:
        UsageError: Completion for the shell does not exist.
    """
    shell = _shell()
    place = _PLACES[shell]
    script = Path.home() / place.script
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(_completer(command, shell).source())
    if place.startup is not None:
        _add_line(Path.home() / place.startup, place.line)
    say(f"{script} completes the command's words in shells that are started from now on")


def _completer(command: click.Command, shell: str) -> ShellComplete:
    from click.shell_completion import get_completion_class

    known = get_completion_class(shell)
    assert known is not None, "click knows the shells of _PLACES"
    return known(command, {}, "sublet", VARIABLE)


def _add_line(file: Path, line: str) -> None:
    content = file.read_text() if file.exists() else ""
    if line not in content.splitlines():
        separator = "" if not content or content.endswith("\n") else "\n"
        file.write_text(f"{content}{separator}{line}\n")


def _shell() -> str:
    """The shell that called, or else the user's.

    Raises:
        UsageError: It is none that completion exists for.
    """
    for name in _names():
        if name in _PLACES:
            return name
    raise UsageError(f"no completion for this shell; there is one for {', '.join(_PLACES)}")


def _names() -> tuple[str, ...]:
    parent = Path(f"/proc/{os.getppid()}/comm").read_text().strip()
    return parent, Path(os.environ.get("SHELL", "")).name
