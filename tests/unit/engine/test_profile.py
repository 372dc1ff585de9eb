"""Where a guest is, by the timer of its vCPU's thread."""

from __future__ import annotations

import threading
import time

import pytest

from sublet.engine import EXIT_INTERRUPTED, Engine, RamBlock, Vcpu
from sublet.errors import UsageError

SPIN = 0x1000


@pytest.fixture
def vcpu() -> Vcpu:
    """In real mode, before ``nop; jmp`` to itself."""
    vm = Engine("translate").create_vm()
    vm.set_memslot(0, 0, 1 << 20, RamBlock(1 << 20))
    vm.memory.write(SPIN, b"\x90\xeb\xfd")
    vcpu = vm.create_vcpu(0)
    vcpu.set_sregs(cs=(0, 0, 0xFFFF, 0x9B))
    vcpu.set_regs(rip=SPIN)
    return vcpu


def spin_until(vcpu: Vcpu, seconds: float) -> None:
    threading.Timer(seconds, vcpu.kick).start()
    assert vcpu.run().reason == EXIT_INTERRUPTED


def test_a_loop_is_found_where_it_is(vcpu: Vcpu) -> None:
    vcpu.start_profile(1000)
    samples: list[tuple[int, int, int, bool, int]] = []
    deadline = time.monotonic() + 60
    while not samples and time.monotonic() < deadline:
        spin_until(vcpu, 0.2)
        samples = [sample for sample in vcpu.take_profile() if sample[3]]
    assert {(address, space, privilege) for address, space, privilege, *_ in samples} == {(SPIN, 0, 0)}


def test_nothing_is_counted_unasked(vcpu: Vcpu) -> None:
    spin_until(vcpu, 0.05)
    assert vcpu.take_profile() == []


@pytest.mark.parametrize("hertz", [0, 10_001])
def test_impossible_rates_are_refused(vcpu: Vcpu, hertz: int) -> None:
    with pytest.raises(UsageError, match=str(hertz)):
        vcpu.start_profile(hertz)
