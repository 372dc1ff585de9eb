"""The command's entry point: verbs, and how every failure ends."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Final

import typer

from sublet.cli import EXIT_INTERRUPTED
from sublet.cli.messages import report, report_internal
from sublet.cli.verbs import Group
from sublet.errors import InternalError, SubletError, UsageError

_COMMAND: Final = Group(
    name="sublet",
    help="Virtual machines for any x86-64 Linux host, with hardware virtualization or without.",
    verbs={
        "run": "sublet.cli.run:run",
        "ps": "sublet.cli.ps:ps",
        "info": "sublet.cli.info:info",
        "guests": "sublet.cli.guests:guests",
        "version": "sublet.cli.version:version",
        "screenshot": "sublet.cli.screen:screenshot",
        "type": "sublet.cli.screen:type_keys",
        "disk": "sublet.cli.disk:disk",
        "media": "sublet.cli.media:media",
        "net": "sublet.cli.net:net",
    },
)


def command_for(words: Sequence[str]) -> typer.Typer:
    """The command that is to take ``words``."""
    command = _COMMAND.build(words)
    command.callback()(_root)
    return command


def _root() -> None:
    """Virtual machines for any x86-64 Linux host, with hardware virtualization or without.

    Start with `sublet run`: a small Linux, at a prompt on this terminal.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Without the program's name; those of the process by default.

    Returns:
        The exit status (docs/guide/exit-codes.md). No exception leaves, except ``SystemExit``.
    """
    _open_standard_descriptors()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read our output has gone; Python must not complain about it again while exiting.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _run(words: list[str]) -> int:
    try:
        command = command_for(words)
        status = command(args=_with_default_stats(words), prog_name="sublet", standalone_mode=False)
    except SubletError as error:
        return report(error)
    except typer.TyperException as error:
        return report(UsageError(error.format_message(), remedy=f"See {_help_command(error, words)}."))
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except MemoryError:
        return report(InternalError("out of memory"))
    except Exception as error:
        return report_internal(error)
    return status if isinstance(status, int) else 0


def _with_default_stats(words: list[str]) -> list[str]:
    """``--stats`` on its own means a table; the parser knows only options with a value."""
    end = words.index("--") if "--" in words else len(words)
    return ["--stats=table" if word == "--stats" else word for word in words[:end]] + words[end:]


def _help_command(error: typer.TyperException, words: list[str]) -> str:
    """The help of what was asked for, down to the verb of a verb: ``sublet disk resize --help``."""
    context = getattr(error, "ctx", None)
    if context is not None and context.command_path.startswith("sublet "):
        return f"{context.command_path} --help"
    verb = next((word for word in words if word in _COMMAND.verbs), None)
    return f"sublet {verb} --help" if verb else "sublet --help"


def _open_standard_descriptors() -> None:
    """Put ``/dev/null`` where a standard descriptor is closed, lest the next file opened be taken for it."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
