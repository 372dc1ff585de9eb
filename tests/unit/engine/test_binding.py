"""What the extension itself does: arguments, buffers, threads. The engines have their own suite."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest

from sublet.core import (
    EXIT_INTERRUPTED,
    EXIT_PIO_IN,
    EXIT_PIO_OUT,
    Engine,
    GuestMemory,
    InvalidError,
    MemoryRangeError,
    RamBlock,
    UnsupportedError,
    Vcpu,
    Vm,
)
from sublet.errors import GuestError, HostRefused

RAM = 1 << 20
CODE = 0x1000
SPIN = bytes.fromhex("ebfe")  # jmp $
ECHO = bytes.fromhex("e410e611ebfa")  # again: in al, 0x10; out 0x11, al; jmp again


@pytest.fixture(scope="module", params=["translate", "kvm"])
def engine(request: pytest.FixtureRequest) -> Engine:
    try:
        return Engine(request.param)
    except (HostRefused, UnsupportedError) as error:
        pytest.skip(f"{request.param}: {error}")


@pytest.fixture
def vm(engine: Engine) -> Vm:
    vm = engine.create_vm()
    vm.set_memslot(0, 0, RAM, RamBlock(RAM))
    return vm


@pytest.fixture
def memory(vm: Vm) -> GuestMemory:
    return vm.memory


@pytest.fixture
def vcpu(engine: Engine, vm: Vm) -> Iterator[Vcpu]:
    """32-bit protected mode, flat, without paging."""
    vcpu = vm.create_vcpu(0)
    vcpu.set_cpuid(engine.supported_cpuid())
    data = (0x10, 0, 0xFFFF_FFFF, 0xC093)
    vcpu.set_sregs(
        cr0=0x11, cs=(8, 0, 0xFFFF_FFFF, 0xC09B), **dict.fromkeys(("ds", "es", "ss", "fs", "gs"), data)
    )
    vcpu.set_regs(rip=CODE, rsp=0x8000, rflags=2)
    yield vcpu
    vcpu.kick()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))])
def test_any_buffer_is_written(memory: GuestMemory, kind: type) -> None:
    memory.write(RAM - 5, kind(b"hello"))
    assert memory.read(RAM - 5, 5) == b"hello"


def test_reading_into_a_part_of_a_buffer(memory: GuestMemory) -> None:
    memory.write(0x2000, b"abcd")
    target = bytearray(8)
    memory.read_into(0x2000, memoryview(target)[2:6])
    assert target == b"\0\0abcd\0\0"


def test_buffers_that_cannot_do_are_refused(memory: GuestMemory) -> None:
    with pytest.raises(InvalidError):
        memory.read_into(0, memoryview(b"read-only"))
    with pytest.raises(InvalidError):
        memory.write(0, memoryview(bytearray(8))[::2])
    with pytest.raises(TypeError):
        memory.write(0, 5)  # type: ignore[arg-type]


def test_integers_are_little_endian_and_may_be_unaligned(memory: GuestMemory) -> None:
    memory.write_u64(0x2001, 0x1122_3344_5566_7788)
    assert memory.read(0x2001, 8) == bytes.fromhex("8877665544332211")
    assert memory.read_u16(0x2001) == 0x7788
    assert memory.read_u32(0x2003) == 0x3344_5566
    assert memory.read_u64(0x2001) == 0x1122_3344_5566_7788


@pytest.mark.parametrize(("gpa", "size"), [(RAM, 1), (RAM - 1, 2), ((1 << 64) - 1, 2), (0, 1 << 40)])
def test_outside_ram_is_the_guests_error(memory: GuestMemory, gpa: int, size: int) -> None:
    with pytest.raises(MemoryRangeError) as caught:
        memory.read(gpa, size)
    assert isinstance(caught.value, GuestError)


def test_a_write_past_ram_is_refused(memory: GuestMemory) -> None:
    with pytest.raises(MemoryRangeError):
        memory.write_u32(RAM - 2, 1)


def test_overlapping_memslots_are_refused(vm: Vm) -> None:
    with pytest.raises(InvalidError, match="overlaps"):
        vm.set_memslot(1, 0x1000, 0x1000, RamBlock(0x1000))
    assert vm.memory.slots() == [(0, 0, RAM, False)]


def test_only_named_registers_change(vcpu: Vcpu) -> None:
    vcpu.set_regs(rax=1, r15=2)
    vcpu.set_regs(rax=3)
    regs = vcpu.get_regs()
    assert (regs["rax"], regs["r15"], regs["rip"]) == (3, 2, CODE)


def test_unknown_registers_are_refused(vcpu: Vcpu) -> None:
    with pytest.raises(TypeError, match="'rzx'"):
        vcpu.set_regs(rzx=1)
    with pytest.raises(TypeError, match="'cr7'"):
        vcpu.set_sregs(cr7=1)


def test_segments_come_back_as_they_were_set(vcpu: Vcpu) -> None:
    vcpu.set_sregs(gs=(0x10, 0x1234_5000, 0xFFFF_FFFF, 0xC093), gdt=(0x5000, 0x1F))
    sregs = vcpu.get_sregs()
    assert sregs["gs"] == (0x10, 0x1234_5000, 0xFFFF_FFFF, 0xC093)
    assert sregs["gdt"] == (0x5000, 0x1F)


def test_exits_carry_plain_integers(vm: Vm, vcpu: Vcpu) -> None:
    vm.memory.write(CODE, ECHO)
    asked = vcpu.run()
    assert (asked.reason, asked.port, asked.size) == (EXIT_PIO_IN, 0x10, 1)
    vcpu.complete_read(0x5A)
    told = vcpu.run()
    assert (told.reason, told.port, told.size, told.data) == (EXIT_PIO_OUT, 0x11, 1, 0x5A)


def test_the_interpreter_is_free_and_a_kick_ends_the_run(vm: Vm, vcpu: Vcpu) -> None:
    vm.memory.write(CODE, SPIN)
    reasons = []
    runner = threading.Thread(target=lambda: reasons.append(vcpu.run().reason))
    runner.start()
    vcpu.kick()
    runner.join(10)
    assert reasons == [EXIT_INTERRUPTED]


def test_a_second_thread_is_refused_while_one_runs(vm: Vm, vcpu: Vcpu) -> None:
    """Two threads spin on the vCPU; one is refused at once, and the other ends by a kick."""
    vm.memory.write(CODE, SPIN)
    outcomes: queue.SimpleQueue[object] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcomes.put(vcpu.run().reason)
        except InvalidError as error:
            outcomes.put(str(error))

    runners = [threading.Thread(target=run) for _ in range(2)]
    for runner in runners:
        runner.start()
    assert "another thread" in str(outcomes.get(timeout=10))
    vcpu.kick()
    assert outcomes.get(timeout=10) == EXIT_INTERRUPTED
    for runner in runners:
        runner.join(10)


def test_counters_are_integers_by_name(vm: Vm, vcpu: Vcpu) -> None:
    vm.memory.write(CODE, ECHO)
    vcpu.run()
    counters = vm.statistics() | vcpu.statistics()
    assert all("." in name and value >= 0 for name, value in counters.items())
