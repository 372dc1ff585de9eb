"""The ``sublet`` command: one file a verb, no logic."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130
"""Left with Ctrl-] or Ctrl-C, as shells report SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, as `sublet.cli.app.main` documents; its modules are loaded only here.

    A Ctrl-C while they are loaded ends the process at once, and one while the process ends changes nothing:
    neither has anything to clean up.
    """
    with _quiet_interrupts():
        from sublet.cli.app import main as run
    status = run(arguments)
    if arguments is None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # The process ends: looking for garbage once more would take a quarter of a short command's time.
        gc.freeze()
    return status


@contextmanager
def _quiet_interrupts() -> Iterator[None]:
    """Exit without a traceback on SIGINT, unless whoever started us wants it ignored."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    if not on_main_thread or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(EXIT_INTERRUPTED)


__all__ = ["EXIT_INTERRUPTED", "main"]
