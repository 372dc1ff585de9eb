"""The command's entry point: verbs, and how every failure ends."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

import typer

from sublet.cli import EXIT_INTERRUPTED
from sublet.cli.disk import disk
from sublet.cli.guests import guests
from sublet.cli.info import info
from sublet.cli.messages import report, report_internal
from sublet.cli.net import net
from sublet.cli.ps import ps
from sublet.cli.run import RUN_EPILOG, run
from sublet.cli.screen import screenshot, type_keys
from sublet.cli.version import version
from sublet.errors import InternalError, SubletError, UsageError

app = typer.Typer(
    name="sublet",
    help="Virtual machines for any x86-64 Linux host, with hardware virtualization or without.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=RUN_EPILOG)(run)
for verb in (ps, info, guests, version):
    app.command()(verb)
app.command()(screenshot)
app.command("type")(type_keys)
app.add_typer(disk)
app.add_typer(net)


@app.callback()
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
        status = app(args=_with_default_stats(words), prog_name="sublet", standalone_mode=False)
    except SubletError as error:
        return report(error)
    except typer.TyperException as error:
        return report(UsageError(error.format_message(), remedy=f"See {_help_command(words)}."))
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


_VERBS = {"run", "ps", "screenshot", "type", "disk", "net", "info", "guests", "version"}


def _help_command(words: list[str]) -> str:
    verb = next((word for word in words if word in _VERBS), None)
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
