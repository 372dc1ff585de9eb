"""Host work of one controller: off the vCPU's thread, but in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from sublet.hw import Executor


class SerialQueue:
    """Jobs run on the executor one after another, so that an earlier write never overtakes a later one.

    Args:
        executor: Where they run.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._jobs: deque[Callable[[], None]] = deque()
        self._running = False
        self._idle = threading.Condition()

    def submit(self, job: Callable[[], None]) -> None:
        """Run ``job`` after those before it. Any thread."""
        with self._idle:
            self._jobs.append(job)
            if self._running:
                return
            self._running = True
        self._executor.submit(self._work)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            except BaseException:
                self._give_up()
                raise

    def _next(self) -> Callable[[], None] | None:
        with self._idle:
            if self._jobs:
                return self._jobs.popleft()
            self._running = False
            self._idle.notify_all()
            return None

    def _give_up(self) -> None:
        """A job of ours failed, which ends the machine: nobody is to wait for the others."""
        with self._idle:
            self._jobs.clear()
            self._running = False
            self._idle.notify_all()

    def drain(self) -> None:
        """Wait until nothing runs and nothing waits. Not from a job, not with a lock that a job takes."""
        with self._idle:
            self._idle.wait_for(lambda: not self._running)
