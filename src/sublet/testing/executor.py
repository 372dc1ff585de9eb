"""Executors without threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class ManualExecutor:
    """Keeps work until ``run`` (``hw.Executor``)."""

    def __init__(self) -> None:
        self.pending: deque[Callable[[], None]] = deque()

    def submit(self, work: Callable[[], None]) -> None:
        """Remember ``work``."""
        self.pending.append(work)

    def run(self) -> int:
        """Do all work, also what that submits; returns how many pieces there were."""
        count = 0
        while self.pending:
            self.pending.popleft()()
            count += 1
        return count


class InlineExecutor:
    """Does work at once, in order; work submitted by work follows it."""

    def __init__(self) -> None:
        self._queue: deque[Callable[[], None]] = deque()
        self._running = False

    def submit(self, work: Callable[[], None]) -> None:
        """Do ``work`` now, unless other work is being done: then after it."""
        self._queue.append(work)
        if self._running:
            return
        self._running = True
        try:
            while self._queue:
                self._queue.popleft()()
        finally:
            self._running = False
