"""The event timers, driven as the specification says a system drives them.

Reference: IA-PC HPET Specification 1.0a §2.3 "Register Model and Memory Map".
"""

from __future__ import annotations

import threading

import pytest

from sublet.devices.platform import hpet as hp
from sublet.devices.platform import hpet_timer as ht
from sublet.devices.platform.hpet import Hpet, LegacyLines
from sublet.machine.host import MonotonicClock
from sublet.testing import FakeClock, RecordingIrqLine

TICKS_A_MS = 100_000
MS = 0.001


class Driver:
    """Registers by name, as a system has them."""

    def __init__(self) -> None:
        self.clock = FakeClock(12345)
        self.inputs = {number: RecordingIrqLine() for number in (20, 21)}
        self.legacy = LegacyLines(RecordingIrqLine(), RecordingIrqLine())
        self.replaced_connected: list[bool] = []
        self.hpet = Hpet(self.clock, self.inputs, self.legacy, self.replaced_connected.append)

    def read(self, register: int) -> int:
        return self.hpet.mmio_read(register, 8)

    def write(self, register: int, value: int, size: int = 8) -> None:
        self.hpet.mmio_write(register, size, value)

    def config(self, timer: int) -> int:
        return self.read(hp.FIRST_TIMER + timer * hp.TIMER_SIZE)

    def set_up(self, timer: int, config: int, route: int = 20) -> None:
        self.write(hp.FIRST_TIMER + timer * hp.TIMER_SIZE, config | route << ht.ROUTE_SHIFT)

    def compare(self, timer: int, value: int) -> None:
        self.write(hp.FIRST_TIMER + timer * hp.TIMER_SIZE + hp.TIMER_VALUE, value)

    def comparator(self, timer: int) -> int:
        return self.read(hp.FIRST_TIMER + timer * hp.TIMER_SIZE + hp.TIMER_VALUE)

    def tick_every_ms(self, config: int, route: int = 20) -> None:
        """Timer 0, as Linux sets it up: the match with VAL_SET, then the period."""
        self.set_up(0, config | ht.ENABLE | ht.PERIODIC | ht.SET_VALUE, route)
        self.compare(0, self.read(hp.COUNTER) + TICKS_A_MS)
        self.compare(0, TICKS_A_MS)

    def let_pass(self, seconds: float) -> None:
        """Time in which the thread comes whenever it wants to."""
        end = self.clock.now_ns() + round(seconds * 1e9)
        while (wake := self.hpet.service()) is not None and wake <= end:
            assert wake > self.clock.now_ns()
            self.clock.advance((wake - self.clock.now_ns()) / 1e9)
        self.clock.advance((end - self.clock.now_ns()) / 1e9)


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_capabilities(driver: Driver) -> None:
    """§2.3.4: 100 MHz, 64 bits, three timers, legacy replacement; §2.3.8: each can do everything."""
    capabilities = driver.read(hp.CAPABILITIES)
    assert capabilities >> 32 == 10_000_000
    assert capabilities & 0xFFFF_FFFF == 0x8086_A201
    for timer in range(3):
        assert driver.config(timer) == 0b11 << 20 + 32 | ht.PERIODIC_CAPABLE | ht.WIDE_CAPABLE
    driver.write(hp.CAPABILITIES, 0)
    assert driver.read(hp.CAPABILITIES) == capabilities


def test_the_counter_runs_while_enabled_and_keeps_its_value(driver: Driver) -> None:
    """§2.3.7: it is written while it is halted, and may be read as two halves."""
    driver.write(hp.COUNTER, 0xFFFF_FFFF)
    driver.clock.advance(1)
    assert driver.read(hp.COUNTER) == 0xFFFF_FFFF
    driver.write(hp.CONFIG, hp.RUN)
    driver.clock.advance(1)
    assert driver.hpet.mmio_read(hp.COUNTER, 4) == 100_000_000 - 1
    assert driver.hpet.mmio_read(hp.COUNTER + 4, 4) == 1
    driver.write(hp.CONFIG, 0)
    driver.clock.advance(1)
    assert driver.read(hp.COUNTER) == 0xFFFF_FFFF + 100_000_000


def test_one_shot_matches_once(driver: Driver) -> None:
    driver.write(hp.CONFIG, hp.RUN)
    driver.set_up(2, ht.ENABLE)
    driver.compare(2, TICKS_A_MS)
    driver.let_pass(0.9 * MS)
    assert driver.inputs[20].edges == 0
    driver.let_pass(0.2 * MS)
    assert driver.inputs[20].changes == [True, False]
    driver.let_pass(10)
    assert driver.inputs[20].edges == 1
    assert driver.read(hp.STATUS) == 0


def test_a_32_bit_one_shot_matches_again_when_the_counter_comes_round(driver: Driver) -> None:
    driver.write(hp.CONFIG, hp.RUN)
    driver.set_up(0, ht.ENABLE | ht.NARROW)
    driver.compare(0, 0xABCD_0000_0001)
    assert driver.comparator(0) == 1
    driver.let_pass(42)
    assert driver.inputs[20].edges == 1
    driver.let_pass(1)
    assert driver.inputs[20].edges == 2


def test_periodic_ticks_do_not_drift(driver: Driver) -> None:
    driver.write(hp.CONFIG, hp.RUN)
    driver.tick_every_ms(0)
    driver.let_pass(1000.5 * MS)
    assert driver.inputs[20].edges == 1000
    assert driver.comparator(0) == 1001 * TICKS_A_MS


def test_a_late_host_loses_no_tick(driver: Driver) -> None:
    """What is owed comes at twice the rate, and is bounded."""
    driver.write(hp.CONFIG, hp.RUN)
    driver.tick_every_ms(ht.NARROW)
    driver.clock.advance(10.2 * MS)
    driver.let_pass(20 * MS)
    assert driver.inputs[20].edges == 30
    driver.clock.advance(3600)
    driver.let_pass(2)
    assert driver.inputs[20].edges <= 30 + ht.MAXIMUM_OWED + 4000


def test_a_period_too_short_for_anyone_floods_nobody(driver: Driver) -> None:
    driver.write(hp.CONFIG, hp.RUN)
    driver.set_up(0, ht.ENABLE | ht.PERIODIC | ht.SET_VALUE)
    driver.compare(0, 1)
    driver.let_pass(10 * MS)
    assert 0 < driver.inputs[20].edges <= 101


def test_a_comparator_just_behind_the_counter_matches_at_once(driver: Driver) -> None:
    driver.write(hp.CONFIG, hp.RUN)
    driver.clock.advance(1)
    driver.set_up(0, ht.ENABLE | ht.NARROW)
    driver.compare(0, driver.read(hp.COUNTER) - 1)
    assert driver.inputs[20].edges == 1


def test_level_stays_until_its_status_is_cleared(driver: Driver) -> None:
    """§2.3.6: writing one clears the bit and lowers the line; zero does nothing."""
    driver.write(hp.CONFIG, hp.RUN)
    driver.tick_every_ms(ht.LEVEL, route=21)
    driver.let_pass(5.5 * MS)
    assert driver.inputs[21].changes == [True]
    assert driver.read(hp.STATUS) == 1
    driver.write(hp.STATUS, 0)
    assert driver.inputs[21].level
    driver.write(hp.STATUS, 1)
    assert not driver.inputs[21].level
    driver.let_pass(MS)
    assert driver.inputs[21].changes == [True, False, True]
    driver.set_up(0, ht.LEVEL, route=21)
    assert not driver.inputs[21].level
    assert driver.read(hp.STATUS) == 1


def test_two_levels_on_one_line(driver: Driver) -> None:
    driver.write(hp.CONFIG, hp.RUN)
    for timer in (1, 2):
        driver.set_up(timer, ht.ENABLE | ht.LEVEL)
        driver.compare(timer, TICKS_A_MS)
    driver.let_pass(2 * MS)
    driver.write(hp.STATUS, 0b010)
    assert driver.inputs[20].level
    driver.write(hp.STATUS, 0b100)
    assert driver.inputs[20].changes == [True, False]


def test_legacy_replacement(driver: Driver) -> None:
    """§2.3.5: timers 0 and 1 have interrupts 0 and 8 whatever their routes are; timer 2 keeps its own."""
    for timer in range(3):
        driver.set_up(timer, ht.ENABLE, route=21)
        driver.compare(timer, TICKS_A_MS)
    driver.write(hp.CONFIG, hp.RUN | hp.LEGACY)
    driver.let_pass(2 * MS)
    assert [line.edges for line in driver.legacy] == [1, 1]  # type: ignore[attr-defined]
    assert driver.inputs[21].edges == 1


def test_a_route_that_a_timer_does_not_have_is_not_taken(driver: Driver) -> None:
    """§2.3.8: the value read back then differs from what was written."""
    driver.set_up(0, 0, route=21)
    driver.set_up(0, 0, route=5)
    assert driver.config(0) >> ht.ROUTE_SHIFT & 0x1F == 21


def test_a_64_bit_match_is_written_as_two_halves(driver: Driver) -> None:
    """§2.3.9.2.2: VAL_SET is set again before the second."""
    register = hp.FIRST_TIMER
    for offset, half in ((0, 0x1234), (4, 0x5)):
        driver.write(register, ht.PERIODIC | ht.SET_VALUE, 4)
        driver.write(register + hp.TIMER_VALUE + offset, half, 4)
        assert not driver.config(0) & ht.SET_VALUE
    assert driver.comparator(0) == 0x5_0000_1234


def test_a_halted_counter_matches_nothing(driver: Driver) -> None:
    driver.set_up(0, ht.ENABLE)
    driver.compare(0, 0)
    driver.let_pass(1)
    assert driver.hpet.service() is None
    assert driver.inputs[20].edges == 0


def test_a_machine_goes_on_where_it_was_saved(driver: Driver) -> None:
    driver.write(hp.CONFIG, hp.RUN)
    driver.tick_every_ms(0)
    driver.let_pass(3.25 * MS)
    other = Driver()
    other.clock.advance(500)
    other.hpet.load_state(driver.hpet.save_state())
    assert other.read(hp.COUNTER) == driver.read(hp.COUNTER)
    other.let_pass(0.74 * MS)
    assert other.inputs[20].edges == 0
    other.let_pass(0.02 * MS)
    assert other.inputs[20].edges == 1
    assert other.hpet.save_state()["config"] == hp.RUN


def test_reset(driver: Driver) -> None:
    before = driver.hpet.save_state()
    driver.write(hp.CONFIG, hp.RUN)
    driver.tick_every_ms(ht.LEVEL)
    driver.let_pass(2 * MS)
    driver.hpet.reset()
    assert driver.hpet.save_state() == before
    assert not driver.inputs[20].level


def test_the_thread_interrupts_by_itself() -> None:
    rose = threading.Event()

    class Line:
        def set_level(self, level: bool) -> None:
            if level:
                rose.set()

    hpet = Hpet(MonotonicClock(), {20: Line()}, LegacyLines(Line(), Line()))
    hpet.start()
    try:
        hpet.mmio_write(hp.CONFIG, 8, hp.RUN)
        hpet.mmio_write(hp.FIRST_TIMER, 8, ht.ENABLE | 20 << ht.ROUTE_SHIFT)
        hpet.mmio_write(hp.FIRST_TIMER + hp.TIMER_VALUE, 8, hpet.mmio_read(hp.COUNTER, 8) + TICKS_A_MS)
        assert rose.wait(20)
    finally:
        hpet.close()
        hpet.close()


def test_legacy_replacement_takes_the_other_timers_off_their_lines() -> None:
    driver = Driver()
    driver.write(hp.CONFIG, hp.RUN)
    driver.write(hp.CONFIG, hp.RUN | hp.LEGACY)
    driver.write(hp.CONFIG, hp.LEGACY)
    assert driver.replaced_connected == [False]
    state = driver.hpet.save_state()
    driver.hpet.reset()
    assert driver.replaced_connected == [False, True]
    driver.hpet.load_state(state)
    assert driver.replaced_connected == [False, True, False]
