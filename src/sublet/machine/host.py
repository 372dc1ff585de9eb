"""What devices borrow from the host and the core: time, worker threads, interrupt lines."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from sublet.engine import Vm

_WORKERS: Final = 4
_JOIN_TIMEOUT_S: Final = 10.0


class MonotonicClock:
    """`sublet.hw.Clock` on CLOCK_MONOTONIC."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary point."""
        return time.monotonic_ns()


class WorkerPool:
    """`sublet.hw.Executor` on a few threads, which start with the first work.

    The threads are daemons: one that hangs in a host call does not keep the process from ending.

    Args:
        on_error: Called on a worker with what a device's work raised: a bug of ours or a host failure.
        threads: How many.
    """

    def __init__(self, on_error: Callable[[Exception], None], threads: int = _WORKERS) -> None:
        self._on_error = on_error
        self._count = threads
        self._branches: list[WorkerPool] = []
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, work: Callable[[], None]) -> None:
        """Run ``work`` soon; work offered after `close` is dropped, as its machine is gone."""
        if not self._threads:
            self._start()
        if not self._closed:
            self._work.put(work)

    def branch(self, threads: int) -> WorkerPool:
        """Threads for one device alone, which may wait long for the host; closed with this pool."""
        pool = WorkerPool(self._on_error, threads)
        self._branches.append(pool)
        return pool

    def _start(self) -> None:
        with self._lock:
            if self._threads or self._closed:
                return
            threads = [
                threading.Thread(target=self._serve, name=f"io{i}", daemon=True) for i in range(self._count)
            ]
            for thread in threads:
                thread.start()
            self._threads = threads

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            if self._closed:
                continue
            try:
                work()
            except Exception as error:
                self._on_error(error)

    def close(self) -> bool:
        """Finish the work that has begun, drop the rest; False when a worker hangs. Idempotent."""
        with self._lock:
            self._closed = True
            threads = self._threads
        for _ in threads:
            self._work.put(None)
        branches_ended = [pool.close() for pool in self._branches]
        for thread in threads:
            thread.join(_JOIN_TIMEOUT_S)
        return all(branches_ended) and not any(thread.is_alive() for thread in threads)


class GsiLine:
    """`sublet.hw.IrqLine`: one line of the interrupt controllers in the core."""

    __slots__ = ("_gsi", "_vm")

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self._gsi = gsi

    def set_level(self, level: bool) -> None:
        """Drive the line; edge-triggered inputs act on a rise."""
        self._vm.set_irq_line(self._gsi, level)


class SharedLine:
    """A line of the core that several devices drive: high while at least one of them holds it high."""

    def __init__(self, line: GsiLine) -> None:
        self._line = line
        self._lock = threading.Lock()
        self._holders: set[SharedLineInput] = set()

    def input(self) -> SharedLineInput:
        """One more device's end."""
        return SharedLineInput(self)

    def drive(self, holder: SharedLineInput, *, level: bool) -> None:
        """Let one of the inputs hold the line or let go of it."""
        with self._lock:
            before = bool(self._holders)
            (self._holders.add if level else self._holders.discard)(holder)
            if bool(self._holders) != before:
                self._line.set_level(level)


class SharedLineInput:
    """`sublet.hw.IrqLine`: one device's end of a `SharedLine`."""

    def __init__(self, line: SharedLine) -> None:
        self._line = line

    def set_level(self, level: bool) -> None:
        """Hold the line high, or let go."""
        self._line.drive(self, level=level)


class DataPort:
    """`sublet.hw.ReadAhead`: what the core answers on a port by itself."""

    __slots__ = ("_port", "_vm")

    def __init__(self, vm: Vm, port: int) -> None:
        self._vm = vm
        self._port = port

    def offer(self, data: bytes) -> None:
        """Let the next reads give ``data``, in place of what was offered before."""
        self._vm.offer_port_data(self._port, data)

    def take_back(self) -> int:
        """Bytes that were not read; they are no longer offered."""
        return self._vm.take_back_port_data(self._port)


class MsiPort:
    """`sublet.hw.MsiSink`: message-signalled interrupts to the local APICs in the core."""

    __slots__ = ("_vm",)

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def signal(self, address: int, data: int) -> None:
        """Deliver one message (PCI 3.0 §6.8)."""
        self._vm.signal_msi(address, data)
