"""High Precision Event Timers: a counter of 64 bits at 100 MHz and three comparators.

Reference: IA-PC HPET (High Precision Event Timers) Specification 1.0a §2.3 "Register Model and Memory Map".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from sublet.devices.platform import hpet_timer as ht
from sublet.devices.platform.hpet_timer import TICK_NS, Comparator
from sublet.hw import Clock, IrqLine

HPET_BASE: Final = 0xFED0_0000
HPET_SIZE: Final = 0x400
TIMER_COUNT: Final = 3

CAPABILITIES: Final = 0x000
CONFIG: Final = 0x010
STATUS: Final = 0x020
COUNTER: Final = 0x0F0
FIRST_TIMER: Final = 0x100
TIMER_SIZE: Final = 0x20
TIMER_CONFIG: Final = 0x00
TIMER_VALUE: Final = 0x08

RUN: Final = 1 << 0
"""ENABLE_CNF."""
LEGACY: Final = 1 << 1
"""LEG_RT_CNF."""

_REVISION: Final = 1
_COUNTER_IS_WIDE: Final = 1 << 13
_LEGACY_CAPABLE: Final = 1 << 15
_VENDOR: Final = 0x8086
BLOCK_ID: Final = _VENDOR << 16 | _LEGACY_CAPABLE | _COUNTER_IS_WIDE | (TIMER_COUNT - 1) << 8 | _REVISION
"""Low half of the capabilities; the ACPI table has it, too."""
_FEMTOSECONDS_A_TICK: Final = TICK_NS * 1_000_000
_WIDE: Final = (1 << 64) - 1
_NS: Final = 1_000_000_000
_LONGEST_SLEEP_NS: Final = 3600 * _NS


class LegacyLines(NamedTuple):
    """What timers 0 and 1 drive in legacy replacement mode."""

    system_timer: IrqLine
    """Interrupt 0, I/O APIC input 2."""
    real_time_clock: IrqLine
    """Interrupt 8."""


class Hpet:
    """One event timer block, 1 KiB of registers. Accesses from any thread.

    Timers are late by what the host's threads are; an interrupt that came too late for the next period is
    made up for. Deviation: in legacy replacement mode the 8254 and the RTC go on driving interrupts 0 and 8.

    Args:
        clock: Time.
        inputs: The I/O APIC inputs that the timers can be routed to; no other device drives these lines.
        legacy: The lines of legacy replacement mode.
        connect_replaced: Called with False when the mode begins, to take the 8254 and the real-time clock off
            these lines, and with True when it ends.
    """

    def __init__(
        self,
        clock: Clock,
        inputs: Mapping[int, IrqLine],
        legacy: LegacyLines,
        connect_replaced: Callable[[bool], None] = lambda connected: None,
    ) -> None:
        self._clock = clock
        self._inputs = inputs
        self._legacy = legacy
        self._connect_replaced = connect_replaced
        self._replaces = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._wakes_ns: int | None = None
        self._timers = [Comparator(sum(1 << number for number in inputs)) for _ in range(TIMER_COUNT)]
        self._high: set[IrqLine] = set()
        self._set_power_on_values()

    def _set_power_on_values(self) -> None:
        self._config = 0
        self._status = 0
        # INVARIANT: the counter was _base at _base_ns, and stands still unless RUN is set.
        self._base = 0
        self._base_ns = 0
        for timer in self._timers:
            timer.reset()

    # Guest side

    def mmio_read(self, offset: int, size: int) -> int:
        """Any bytes of one 64-bit register; what lies past its end reads as zero."""
        shift = 8 * (offset & 7)
        with self._changed:
            if offset & ~7 != COUNTER:
                self._run_timers()
            value = self._read(offset & ~7)
        return value >> shift & (1 << 8 * size) - 1

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Any bytes of one 64-bit register."""
        shift = 8 * (offset & 7)
        mask = (1 << 8 * size) - 1 << shift & _WIDE
        with self._changed:
            self._run_timers()
            self._write(offset & ~7, value << shift & mask, mask)
            self._run_timers()
            self._wake_thread()

    def _read(self, register: int) -> int:
        if register >= FIRST_TIMER:
            return self._read_timer(*divmod(register - FIRST_TIMER, TIMER_SIZE))
        if register == CAPABILITIES:
            return _FEMTOSECONDS_A_TICK << 32 | BLOCK_ID
        if register == COUNTER:
            return self._counter(self._clock.now_ns()) & _WIDE
        return {CONFIG: self._config, STATUS: self._status}.get(register, 0)

    def _read_timer(self, index: int, register: int) -> int:
        if index >= TIMER_COUNT:
            return 0
        if register == TIMER_CONFIG:
            return self._timers[index].read_config()
        return self._timers[index].read_value() if register == TIMER_VALUE else 0

    def _write(self, register: int, bits: int, mask: int) -> None:
        if register >= FIRST_TIMER:
            self._write_timer(*divmod(register - FIRST_TIMER, TIMER_SIZE), bits, mask)
        elif register == CONFIG:
            self._configure((self._config & ~mask | bits) & (RUN | LEGACY))
        elif register == STATUS:
            self._status &= ~bits
        elif register == COUNTER:
            now = self._clock.now_ns()
            self._base, self._base_ns = (self._counter(now) & _WIDE & ~mask) | bits, now
            self._arm_all()

    def _write_timer(self, index: int, register: int, bits: int, mask: int) -> None:
        if index >= TIMER_COUNT:
            return
        timer, counter = self._timers[index], self._running_counter()
        if register == TIMER_CONFIG:
            timer.write_config(bits, mask, counter)
            if not timer.config & ht.LEVEL:
                self._status &= ~(1 << index)
        elif register == TIMER_VALUE:
            timer.write_value(bits, mask, counter)

    def _configure(self, config: int) -> None:
        """Write the general configuration register; the counter keeps its value while it is halted."""
        if (config ^ self._config) & RUN:
            now = self._clock.now_ns()
            self._base, self._base_ns = self._counter(now) & _WIDE, now
            self._config = config
            self._arm_all()
        self._config = config
        self._replace()

    def _replace(self) -> None:
        """Follow the legacy replacement bit (§2.3.5 "General Configuration Register")."""
        replaces = bool(self._config & LEGACY)
        if replaces != self._replaces:
            self._replaces = replaces
            self._connect_replaced(not replaces)

    # The counter

    def _counter(self, now_ns: int) -> int:
        """The main counter as it would be if it did not wrap."""
        return self._base + ((now_ns - self._base_ns) // TICK_NS if self._config & RUN else 0)

    def _running_counter(self) -> int | None:
        return self._counter(self._clock.now_ns()) if self._config & RUN else None

    def _arm_all(self) -> None:
        counter = self._running_counter()
        for timer in self._timers:
            timer.arm(counter)

    # Interrupts

    def service(self) -> int | None:
        """Interrupt for what is due; returns when to come again (clock's nanoseconds), None for never."""
        with self._changed:
            self._run_timers()
            return self._next_ns()

    def _run_timers(self) -> None:
        now = self._clock.now_ns()
        counter = self._counter(now)
        for index, timer in enumerate(self._timers):
            timer.advance(counter)
            if timer.owed:
                self._expire(index, timer, now)
        self._drive()

    def _expire(self, index: int, timer: Comparator, now_ns: int) -> None:
        """Settle what a timer owes: a status bit stands for any number of matches, a pulse for one."""
        if timer.config & ht.LEVEL:
            timer.owed = 0
            self._status |= 1 << index
        elif not timer.config & ht.ENABLE:
            timer.owed = 0
        elif timer.take(now_ns):
            line = self._line(index)
            if line is not None and line not in self._high:
                line.set_level(True)
                line.set_level(False)

    def _line(self, index: int) -> IrqLine | None:
        """What a timer drives (§2.3.5 "General Configuration Register", table 3)."""
        if self._config & LEGACY and index < len(self._legacy):
            return self._legacy[index]
        return self._inputs.get(self._timers[index].route)

    def _drive(self) -> None:
        """Bring the lines of level-triggered timers in line with the status bits."""
        if not self._status and not self._high:
            return
        active = (
            self._line(index)
            for index, timer in enumerate(self._timers)
            if self._status >> index & 1 and timer.config & ht.ENABLE
        )
        wanted = {line for line in active if line is not None}
        for line in self._high ^ wanted:
            line.set_level(line in wanted)
        self._high = wanted

    def _next_ns(self) -> int | None:
        """When a timer changes a line by itself next."""
        if not self._config & RUN:
            return None
        now = self._clock.now_ns()
        counter = self._counter(now)
        times = [
            timer.next_ns(counter, now)
            for index, timer in enumerate(self._timers)
            if timer.config & ht.ENABLE and not self._status >> index & 1
        ]
        return min((time for time in times if time is not None), default=None)

    # The thread

    def start(self) -> None:
        """Interrupt by itself, on a thread; without it ``service`` is the caller's to call."""
        self._thread = threading.Thread(target=self._serve, name="hpet", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._changed:
            while not self._closed:
                self._run_timers()
                self._wakes_ns = self._next_ns()
                self._changed.wait(self._seconds_to_sleep())

    def _seconds_to_sleep(self) -> float | None:
        if self._wakes_ns is None:
            return None
        return min(max(self._wakes_ns - self._clock.now_ns(), 0), _LONGEST_SLEEP_NS) / _NS

    def _wake_thread(self) -> None:
        """Unless it wakes early enough by itself."""
        wanted = self._next_ns()
        if wanted is not None and (self._wakes_ns is None or wanted < self._wakes_ns):
            self._wakes_ns = wanted
            self._changed.notify()

    def close(self) -> None:
        """End the thread. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # Lifecycle

    def reset(self) -> None:
        """Halted at zero, all timers off."""
        with self._changed:
            self._set_power_on_values()
            self._drive()
            self._replace()

    def save_state(self) -> dict[str, Any]:
        """Registers, and how far each timer is."""
        with self._changed:
            self._run_timers()
            now = self._clock.now_ns()
            counter = self._counter(now)
            return {
                "config": self._config,
                "status": self._status,
                "counter": counter & _WIDE,
                "timers": [timer.save_state(counter, now) for timer in self._timers],
            }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        with self._changed:
            now = self._clock.now_ns()
            self._config, self._status = state["config"], state["status"]
            self._base, self._base_ns = state["counter"], now
            for timer, saved in zip(self._timers, state["timers"], strict=True):
                timer.load_state(saved, self._base, now)
            self._drive()
            self._replace()
            self._wake_thread()
