"""The command's entry point: verbs, and how every failure ends."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

import click

from sublet.cli import EXIT_INTERRUPTED, completion
from sublet.cli.messages import report, report_internal
from sublet.cli.verbs import Group
from sublet.errors import InternalError, SubletError, UsageError


def _eager_option(name: str, help: str, act: Callable[[click.Command], None]) -> click.Option:
    """A flag of the program itself that does something and ends it."""

    def callback(context: click.Context, option: click.Parameter, given: bool) -> None:
        if given and not context.resilient_parsing:
            act(context.command)
            context.exit()

    return click.Option([name], is_flag=True, is_eager=True, expose_value=False, help=help, callback=callback)


_HELP: Final = """
Virtual machines for any x86-64 Linux host, with hardware virtualization or without.

Start with `sublet run`: a small Linux, at a prompt on this terminal.
"""

_COMMAND: Final = Group(
    name="sublet",
    help=_HELP,
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
    params=[
        _eager_option("--install-completion", "Complete words in this shell.", completion.install),
        _eager_option("--show-completion", "Print the script for that.", completion.show),
    ],
)


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
        if completion.answer(_COMMAND):
            return 0
        return _perform(words)
    except SubletError as error:
        return report(error)
    except click.ClickException as error:
        return report(UsageError(error.format_message(), remedy=f"See {_help_command(error, words)}."))
    except click.exceptions.Exit as left:
        return left.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except MemoryError:
        return report(InternalError("out of memory"))
    except Exception as error:
        return report_internal(error)


def _perform(words: list[str]) -> int:
    """Parse the words and call the verb; a group without one shows its help."""
    with _COMMAND.make_context("sublet", _with_default_stats(words)) as context:
        status = _COMMAND.invoke(context)
    return status if isinstance(status, int) else 0


def _with_default_stats(words: list[str]) -> list[str]:
    """``--stats`` on its own means a table; the parser knows only options with a value."""
    end = words.index("--") if "--" in words else len(words)
    return ["--stats=table" if word == "--stats" else word for word in words[:end]] + words[end:]


def _help_command(error: click.ClickException, words: list[str]) -> str:
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
