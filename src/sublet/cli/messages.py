"""What we say to the user on standard error; standard output belongs to the guest, or to programs."""

from __future__ import annotations

import os
import sys
import time
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, Final

from sublet.errors import InternalError, SubletError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_DEBUG_VARIABLE: Final = "SUBLET_DEBUG"


def say(text: str) -> None:
    """Print one line on standard error; a closed or broken one is nobody's problem."""
    try:
        print(f"sublet: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):
        return


def report(error: SubletError) -> int:
    """Say what went wrong and what to do about it; returns the exit status."""
    message = " ".join(error.message.split())
    say(
        f"error: {message}"
        + (f" {error.remedy}" if _ends(message) else f". {error.remedy}") * bool(error.remedy)
    )
    if os.environ.get(_DEBUG_VARIABLE):
        traceback.print_exception(error)
    return error.exit_code


def report_internal(error: Exception) -> int:
    """Report an exception that nobody expected, without a traceback unless ``SUBLET_DEBUG`` is set."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" in {os.path.basename(place[0].filename)}:{place[0].lineno}" if place else ""
    internal = InternalError(
        f"internal error{where}: {type(error).__name__}: {error}",
        remedy=f"Run it again with {_DEBUG_VARIABLE}=1 and report what it prints.",
    )
    internal.__cause__ = error
    return report(internal)


def _ends(sentence: str) -> bool:
    return sentence.endswith((".", "!", "?"))


class ProgressDisplay:
    """Shows long steps on standard error: a bar on a terminal, else a line a step and every 10 seconds.

    An instance is a ``sublet.guest.Progress``: called with a message and, where known, how much is done.
    """

    _LINE_INTERVAL_S = 10.0

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._message = ""
        self._last_line = 0.0
        if sys.stderr.isatty():
            self._bar = _make_bar()

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, message: str, done: int = 0, total: int = 0) -> None:
        if self._bar is not None:
            self._show_bar(self._bar, message, done, total)
        else:
            self._show_line(message, done, total)

    def _show_bar(self, bar: Progress, message: str, done: int, total: int) -> None:
        if self._task is None:
            bar.start()
            self._task = bar.add_task(message, total=total or None)
        bar.update(self._task, description=message, completed=done, total=total or None)

    def _show_line(self, message: str, done: int, total: int) -> None:
        now = time.monotonic()
        if message == self._message and now - self._last_line < self._LINE_INTERVAL_S:
            return
        share = f" {100 * done // total} %" if total and done else ""
        say(f"{message}{share}")
        self._message, self._last_line = message, now


def _make_bar() -> Progress:
    # Loaded for a terminal alone: it takes as long as converting a small disk.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("sublet: {task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
