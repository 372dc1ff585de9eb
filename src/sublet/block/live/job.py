"""What every job beside a running guest does: go at a given rate, say how far it is, and stop when asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sublet.block.live.drive import Drive
from sublet.errors import WrongMoment

WINDOW: Final = 1 << 20
"""Bytes that are copied at once, during which guest writes to them wait."""
ZERO_WINDOW: Final = 1 << 30
"""Bytes without data that are passed over at once."""
_NAP_S: Final = 0.1
_REPORT_INTERVAL_S: Final = 0.2


class Job:
    """One piece of work on a drive.

    Args:
        drive: The disk.
        rate: Bytes a second to copy at most; 0 for no limit. What the guest writes is not limited.
        progress: Called with bytes done and in all, a few times a second.
        cancelled: Whether nobody wants the result any more.
    """

    def __init__(
        self,
        drive: Drive,
        *,
        rate: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.drive = drive
        self._rate = rate
        self._progress = progress
        self._cancelled = cancelled
        self._started = time.monotonic()
        self._copied = 0
        self._reported = 0.0

    def step(self, done: int, total: int, copied: int) -> None:
        """``done`` of ``total`` bytes are dealt with, ``copied`` of them copied since the last call.

        Waits where that was too fast.

        Raises:
            WrongMoment: The job is to stop.
        """
        self.require_wanted()
        self._copied += copied
        now = time.monotonic()
        if now - self._reported >= _REPORT_INTERVAL_S:
            self._reported = now
            self._progress(done, total)
        if self._rate:
            self._wait_until(self._started + self._copied / self._rate)

    def finish(self, total: int) -> None:
        """All is done."""
        self._progress(total, total)

    def require_wanted(self) -> None:
        """Go on only if somebody wants the result."""
        if self.drive.closing:
            raise WrongMoment("the machine ended or was reset before the work was done")
        if self._cancelled():
            raise WrongMoment("the work was cancelled")

    def _wait_until(self, when: float) -> None:
        while (left := when - time.monotonic()) > 0:
            time.sleep(min(left, _NAP_S))
            self.require_wanted()
