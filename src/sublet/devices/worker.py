"""The executor that machines give their devices: a few threads and one queue of work."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

_LOG = logging.getLogger(__name__)


class WorkerPool:
    """Runs submitted work in order of arrival on ``threads`` daemon threads (``hw.Executor``).

    The amount of queued work is bounded by the devices: each submits a queue at most once at a time.
    Work that raises is our bug: it is logged and the thread goes on.
    """

    def __init__(self, threads: int = 1, name: str = "devices") -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{index}", daemon=True)
            for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], None]) -> None:
        """Have ``work`` called soon on one of the threads."""
        self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:
                _LOG.exception("device work failed")

    def close(self) -> None:
        """Finish what was submitted, then end the threads. Idempotent; not from a worker."""
        threads, self._threads = self._threads, []
        for _ in threads:
            self._work.put(None)
        for thread in threads:
            thread.join()
