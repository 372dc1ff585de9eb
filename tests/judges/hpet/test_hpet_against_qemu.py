"""Our event timers and QEMU's, set up alike with the counter halted; their registers must then agree.

Left out: which interrupts a timer can be routed to, which is the board's affair.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.judges.qemu import IdleQemu

from sublet.devices.platform import hpet as hp
from sublet.devices.platform import hpet_timer as ht
from sublet.devices.platform.hpet import Hpet, LegacyLines
from sublet.testing import FakeClock, RecordingIrqLine

_ROUTING = 0xFFFF_FFFF << ht.CAPABLE_INPUTS_SHIFT | ht.ROUTE_MASK
_LEGACY_AND_HALTED = (0, hp.LEGACY)


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[IdleQemu]:
    machine = IdleQemu(tmp_path)
    yield machine
    machine.close()


class Pair:
    """Both devices, given the same accesses."""

    def __init__(self, qemu: IdleQemu) -> None:
        self._qemu = qemu
        lines = LegacyLines(RecordingIrqLine(), RecordingIrqLine())
        self._ours = Hpet(FakeClock(), {20: RecordingIrqLine()}, lines)

    def write(self, register: int, value: int) -> None:
        """Store 32 bits."""
        self._ours.mmio_write(register, 4, value)
        self._qemu.ask(f"writel {hp.HPET_BASE + register:#x} {value:#x}")

    def read(self, register: int) -> tuple[int, int]:
        """64 bits of ours and of QEMU's, as two halves."""
        ours = self._ours.mmio_read(register, 8)
        halves = [int(self._qemu.ask(f"readl {hp.HPET_BASE + register + at:#x}"), 16) for at in (0, 4)]
        return ours, halves[0] | halves[1] << 32


def check(pair: Pair) -> None:
    for register in (hp.CAPABILITIES, hp.CONFIG, hp.STATUS, hp.COUNTER):
        ours, theirs = pair.read(register)
        assert ours == theirs, f"register {register:#x}: {ours:#x}, QEMU's {theirs:#x}"
    for timer in range(hp.TIMER_COUNT):
        start = hp.FIRST_TIMER + timer * hp.TIMER_SIZE
        ours, theirs = pair.read(start)
        assert ours & ~_ROUTING == theirs & ~_ROUTING, f"timer {timer}: {ours:#x}, QEMU's {theirs:#x}"
        ours, theirs = pair.read(start + hp.TIMER_VALUE)
        assert ours == theirs, f"comparator {timer}: {ours:#x}, QEMU's {theirs:#x}"


def test_the_registers_at_power_on(qemu: IdleQemu) -> None:
    check(Pair(qemu))


@pytest.mark.parametrize("seed", range(4))
def test_the_registers_after_the_same_writes(qemu: IdleQemu, seed: int) -> None:
    """A system's way: configuration with VAL_SET, then the match, then the period."""
    rng, pair = random.Random(seed), Pair(qemu)
    for _ in range(50):
        start = hp.FIRST_TIMER + hp.TIMER_SIZE * rng.randrange(hp.TIMER_COUNT)
        pair.write(hp.CONFIG, rng.choice(_LEGACY_AND_HALTED))
        pair.write(hp.COUNTER, rng.getrandbits(32))
        pair.write(hp.COUNTER + 4, rng.getrandbits(32))
        config = rng.choice((0, ht.PERIODIC | ht.SET_VALUE)) | rng.choice((0, ht.NARROW, ht.LEVEL))
        pair.write(start, config)
        pair.write(start + hp.TIMER_VALUE, rng.getrandbits(32))
        if config & ht.PERIODIC:
            pair.write(start + hp.TIMER_VALUE, rng.randrange(1 << 30))
        elif not config & ht.NARROW:
            pair.write(start + hp.TIMER_VALUE + 4, rng.getrandbits(32))
        check(pair)
