"""The run loop: one thread a vCPU, each exit handled through a table."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Final

from sublet import engine
from sublet.engine import Exit, Vcpu
from sublet.errors import InternalError
from sublet.machine.bus import Buses
from sublet.machine.control import Request
from sublet.machine.profile import Profile
from sublet.machine.reset_log import ResetLog

EXIT_NAMES: Final = {
    engine.EXIT_PIO_IN: "pio_in",
    engine.EXIT_PIO_OUT: "pio_out",
    engine.EXIT_MMIO_READ: "mmio_read",
    engine.EXIT_MMIO_WRITE: "mmio_write",
    engine.EXIT_HLT: "hlt",
    engine.EXIT_HYPERCALL: "hypercall",
    engine.EXIT_SHUTDOWN: "shutdown",
    engine.EXIT_INTERRUPTED: "interrupted",
    engine.EXIT_INTERRUPT_WINDOW: "interrupt_window",
    engine.EXIT_SYSTEM_RESET: "system_reset",
    engine.EXIT_INTERNAL_ERROR: "internal_error",
}
_HYPERCALL_UNKNOWN: Final = (1 << 64) - 1000
"""-KVM_ENOSYS in RAX: no such hypercall."""
_JOIN_TIMEOUT_S: Final = 10.0

_OWN_SIGNALS: Final = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGTRAP,
    signal.SIGSYS,
    signal.SIGABRT,
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
}
"""What a vCPU's thread raises itself, or is sent by name: faults, kicks and the profile's timer."""

_thread = threading.local()


def current_vcpu() -> int:
    """Index of the vCPU whose thread this is; the boot processor's on any other thread."""
    index: int = getattr(_thread, "index", 0)
    return index


def in_system_management_mode() -> bool:
    """Whether the access that this thread carries out is one of a vCPU in that mode."""
    vcpu: Vcpu | None = getattr(_thread, "vcpu", None)
    return vcpu is not None and vcpu.get_events()["smm"]


EndMachine = Callable[[Request, Exception | None], None]
"""Ends a power cycle for the reason given; any thread."""


class VcpuRunner:
    """Runs one vCPU on a thread of its own until it is stopped or asks for the end of the machine.

    Args:
        vcpu: Ready to run; used by this thread alone from `start` on, except for ``kick``.
        index: Its number, for names and `current_vcpu`.
        buses: Where its I/O goes.
        end: Called on this thread at shutdown, reset and failure; stops every vCPU.
    """

    def __init__(self, vcpu: Vcpu, index: int, buses: Buses, end: EndMachine) -> None:
        self._vcpu = vcpu
        self._index = index
        self._end = end
        self._stopping = False
        self._exits = dict.fromkeys(EXIT_NAMES, 0)
        self._handlers = self._make_handlers(buses)
        self._thread = threading.Thread(target=self._main, name=f"vcpu{index}", daemon=True)

    def start(self) -> None:
        """Begin to run guest code."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; returns at once. Idempotent, any thread."""
        self._stopping = True
        self._vcpu.kick()

    def join(self) -> bool:
        """Wait for the thread after `stop`; False when it does not end (stuck in a device's host call)."""
        if self._thread.ident is not None:
            self._thread.join(_JOIN_TIMEOUT_S)
        return not self._thread.is_alive()

    def statistics(self) -> dict[str, int]:
        """The vCPU's counters and its exits by reason; call when the thread has ended."""
        exits = {f"exits.{EXIT_NAMES[reason]}": count for reason, count in self._exits.items() if count}
        return exits | self._vcpu.statistics()

    def show_state(self, log: ResetLog) -> None:
        """Show where the vCPU has stopped; call when the thread has ended."""
        if log.wanted:
            vcpu = self._vcpu
            log.show_vcpu(self._index, {**vcpu.get_regs(), **vcpu.get_sregs(), **vcpu.get_events()})

    def add_profile(self, profile: Profile) -> None:
        """Add what was sampled of the vCPU; call when the thread has ended."""
        profile.add(self._vcpu)

    def _main(self) -> None:
        # A thread that takes a signal of its own takes what waits for the process as well. Python would then
        # note it, and not wake the main thread, which alone acts on it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _OWN_SIGNALS)
        _thread.index, _thread.vcpu = self._index, self._vcpu
        try:
            self._loop()
        except Exception as error:
            self._end(Request.FAILED, error)

    def _loop(self) -> None:
        run, exits, handlers = self._vcpu.run, self._exits, self._handlers
        while not self._stopping:
            exit_ = run()
            reason = exit_.reason
            exits[reason] += 1
            handlers[reason](exit_)

    def _make_handlers(self, buses: Buses) -> dict[int, Callable[[Exit], None]]:
        """Closures over bound methods: the hot exits look up no attribute twice."""
        complete = self._vcpu.complete_read
        read_port, write_port = buses.ports.read, buses.ports.write
        read_memory, write_memory = buses.mmio.read, buses.mmio.write

        def pio_in(exit_: Exit) -> None:
            complete(read_port(exit_.port, exit_.size))

        def pio_out(exit_: Exit) -> None:
            write_port(exit_.port, exit_.size, exit_.data)

        def mmio_read(exit_: Exit) -> None:
            complete(read_memory(exit_.address, exit_.size))

        def mmio_write(exit_: Exit) -> None:
            write_memory(exit_.address, exit_.size, exit_.data)

        return {
            engine.EXIT_PIO_IN: pio_in,
            engine.EXIT_PIO_OUT: pio_out,
            engine.EXIT_MMIO_READ: mmio_read,
            engine.EXIT_MMIO_WRITE: mmio_write,
            engine.EXIT_HLT: self._halt,
            engine.EXIT_HYPERCALL: self._hypercall,
            engine.EXIT_SHUTDOWN: self._shutdown,
            engine.EXIT_INTERRUPTED: _continue,
            engine.EXIT_INTERRUPT_WINDOW: _continue,
            engine.EXIT_SYSTEM_RESET: self._system_reset,
            engine.EXIT_INTERNAL_ERROR: self._internal_error,
        }

    def _halt(self, exit_: Exit) -> None:
        raise InternalError("the engine left the run loop on HLT although it has the interrupt controller")

    def _hypercall(self, exit_: Exit) -> None:
        self._vcpu.set_regs(rax=_HYPERCALL_UNKNOWN)

    def _shutdown(self, exit_: Exit) -> None:
        self._end(Request.TRIPLE_FAULT, None)

    def _system_reset(self, exit_: Exit) -> None:
        self._end(Request.RESET, None)

    def _internal_error(self, exit_: Exit) -> None:
        rip = self._vcpu.get_regs()["rip"]
        raise InternalError(f"the engine cannot continue: code {exit_.data:#x} at guest address {rip:#x}")


def _continue(exit_: Exit) -> None:
    """Nothing to do: look at the stop request and run on."""
