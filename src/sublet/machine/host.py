"""What devices borrow from the host and the core: time, worker threads, interrupt lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from sublet.engine import Vm

_WORKERS: Final = 4


class MonotonicClock:
    """`sublet.hw.Clock` on CLOCK_MONOTONIC."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary point."""
        return time.monotonic_ns()


class WorkerPool:
    """`sublet.hw.Executor` on a few threads, started as work arrives."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="io")

    def submit(self, work: Callable[[], None]) -> None:
        """Run ``work`` soon; work offered after `close` is dropped, as its machine is gone."""
        try:
            self._pool.submit(work)
        except RuntimeError:
            return

    def close(self) -> None:
        """Finish the work that has begun, drop the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class GsiLine:
    """`sublet.hw.IrqLine`: one line of the interrupt controllers in the core."""

    __slots__ = ("_gsi", "_vm")

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self._gsi = gsi

    def set_level(self, level: bool) -> None:
        """Drive the line; edge-triggered inputs act on a rise."""
        self._vm.set_irq_line(self._gsi, level)


class MsiPort:
    """`sublet.hw.MsiSink`: message-signalled interrupts to the local APICs in the core."""

    __slots__ = ("_vm",)

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def signal(self, address: int, data: int) -> None:
        """Deliver one message (PCI 3.0 §6.8)."""
        self._vm.signal_msi(address, data)
