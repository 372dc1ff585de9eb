"""State round trips, CPUID, MSRs and debug registers, from outside and from the guest."""

from __future__ import annotations

import struct

import pytest
from tests.conformance.engine.guests import CODE, DATA, STACK, Build, Guest

from sublet.core import InvalidError

NAMES = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))


def test_general_registers_round_trip(built: Build) -> None:
    guest = built("hlt")
    values = {name: 0x1111_1111_1111_1111 * (at + 1) & (1 << 64) - 1 for at, name in enumerate(NAMES)}
    guest.vcpu.set_regs(**values, rip=0x1234, rflags=0x8D7)
    assert guest.vcpu.get_regs() == values | {"rip": 0x1234, "rflags": 0x8D7}


def test_the_guest_sees_and_changes_general_registers(built: Build) -> None:
    guest = built("xchg rax, r15; not rbx; out 0x80, al; hlt")
    guest.vcpu.set_regs(rax=1, r15=2, rbx=0)
    guest.out()
    regs = guest.regs()
    assert (regs["rax"], regs["r15"], regs["rbx"], regs["rsp"]) == (2, 1, (1 << 64) - 1, STACK)


def test_special_registers_round_trip(built: Build) -> None:
    guest = built("hlt")
    before = guest.vcpu.get_sregs()
    guest.vcpu.set_sregs(**before)
    assert guest.vcpu.get_sregs() == before


def test_the_state_after_creation_is_reset(vm: Guest) -> None:
    sregs = vm.vcpu.get_sregs()
    assert sregs["cr0"] == 0x6000_0010
    # KVM's code segment is of type code, the manual's (Intel SDM vol. 3A table 10-1) of type data.
    assert sregs["cs"] in [(0xF000, 0xFFFF_0000, 0xFFFF, kind) for kind in (0x93, 0x9B)]
    assert vm.regs()["rip"] == 0xFFF0
    assert vm.regs()["rflags"] == 2


def test_vector_state_round_trips(built: Build) -> None:
    guest = built(f"movups xmm1, [{DATA}]; out 0x80, al; movups [{DATA + 16}], xmm2; out 0x80, al; hlt")
    guest.memory.write(DATA, bytes(range(16)))
    guest.out()
    area = bytearray(guest.vcpu.get_xsave())
    assert area[160 + 16 : 160 + 32] == bytes(range(16))
    area[160 + 32 : 160 + 48] = bytes(range(100, 116))
    area[512] |= 2
    guest.vcpu.set_xsave(bytes(area))
    guest.out()
    assert guest.memory.read(DATA + 16, 16) == bytes(range(100, 116))


def test_x87_and_mxcsr_round_trip(built: Build) -> None:
    guest = built(
        f"fninit; fldpi; ldmxcsr [{DATA}]; out 0x80, al; fstp st(0); stmxcsr [{DATA + 4}]; out 0x80, al; hlt"
    )
    guest.memory.write_u32(DATA, 0x1FA0)
    guest.out()
    area = guest.vcpu.get_xsave()
    assert struct.unpack_from("<I", area, 24)[0] == 0x1FA0
    assert area[32:42] == bytes.fromhex("35c26821a2da0fc90040")
    guest.vcpu.set_xsave(area)
    guest.out()
    assert guest.memory.read_u32(DATA + 4) == 0x1FA0


def test_xcr0_is_in_the_area(built: Build) -> None:
    source = (
        "mov rax, cr4; bts rax, 18; mov cr4, rax; xor ecx, ecx; xgetbv; or eax, 7; xsetbv; out 0x80, al; hlt"
    )
    guest = built(source)
    guest.out()
    assert struct.unpack_from("<Q", guest.vcpu.get_xsave(), 464)[0] == 7


def test_a_short_area_is_refused(built: Build) -> None:
    with pytest.raises(InvalidError):
        built("hlt").vcpu.set_xsave(bytes(100))


def test_the_guest_sees_the_cpuid_that_was_set(vm: Guest) -> None:
    entries = [entry for entry in vm.engine.supported_cpuid() if entry[0] != 0x4000_0000]
    vm.vcpu.set_cpuid([*entries, (0x4000_0000, 0, False, 0x11, 0x22, 0x33, 0x44)])
    report = "out 0x80, eax; mov eax, ebx; out 0x80, eax; mov eax, edx; out 0x80, eax; hlt"
    source = "mov eax, 0x40000000; cpuid;" + report
    assert vm.load(source).outs(3) == [0x11, 0x22, 0x44]


def test_cpuid_by_subleaf(vm: Guest) -> None:
    entries = [entry for entry in vm.engine.supported_cpuid() if entry[0] != 4]
    vm.vcpu.set_cpuid([*entries, (4, 0, True, 0xA0, 0, 0, 0), (4, 1, True, 0xA1, 0, 0, 0)])
    source = (
        "mov eax, 4; xor ecx, ecx; cpuid; out 0x80, eax; mov eax, 4; mov ecx, 1; cpuid; out 0x80, eax; hlt"
    )
    assert vm.load(source).outs(2) == [0xA0, 0xA1]


def test_the_supported_cpuid_has_long_mode(vm: Guest) -> None:
    entries = {entry[0]: entry for entry in vm.engine.supported_cpuid()}
    assert entries[0x8000_0001][6] >> 29 & 1
    assert entries[0][3] >= 1


@pytest.mark.parametrize("index", [0xC000_0081, 0xC000_0082, 0xC000_0102, 0x175, 0x277])
def test_msrs_round_trip_from_outside_and_inside(built: Build, index: int) -> None:
    value = 0x0000_0506_0007_0406 if index == 0x277 else 0x0000_1122_0033_4455
    guest = built(f"mov ecx, {index}; rdmsr; out 0x80, eax; mov eax, edx; out 0x80, eax; hlt")
    guest.vcpu.set_msrs([(index, value)])
    assert guest.vcpu.get_msrs([index]) == [value]
    low, high = guest.outs(2)
    assert high << 32 | low == value


def test_the_guest_writes_an_msr(built: Build) -> None:
    guest = built("mov ecx, 0xc0000082; mov eax, 0x1000; mov edx, 0; wrmsr; out 0x80, al; hlt")
    guest.out()
    assert guest.vcpu.get_msrs([0xC000_0082]) == [0x1000]


def test_an_unknown_msr_is_refused_by_name(built: Build) -> None:
    guest = built("hlt")
    with pytest.raises(InvalidError, match="0x12345678"):
        guest.vcpu.get_msrs([0xC000_0081, 0x1234_5678])
    with pytest.raises(InvalidError, match="0x12345678"):
        guest.vcpu.set_msrs([(0x1234_5678, 1)])


def test_the_tsc_goes_forward(built: Build) -> None:
    first, second = "rdtsc; shl rdx, 32; lea rbx, [rdx + rax];", "rdtsc; shl rdx, 32; add rax, rdx;"
    source = first + second + "cmp rax, rbx; seta al; out 0x80, al; hlt"
    assert built(source).out() == 1


def test_debug_registers_round_trip(built: Build) -> None:
    guest = built("mov rax, dr1; out 0x80, eax; mov eax, 0x5000; mov dr2, rax; out 0x80, al; hlt")
    guest.vcpu.set_debug_regs([0x1000, 0x2000, 0x3000, 0x4000, 0xFFFF0FF0, 0x400])
    assert guest.vcpu.get_debug_regs() == (0x1000, 0x2000, 0x3000, 0x4000, 0xFFFF0FF0, 0x400)
    assert guest.out() == 0x2000
    guest.out()
    assert guest.vcpu.get_debug_regs()[2] == 0x5000


def test_an_instruction_breakpoint(built: Build) -> None:
    guest = built("nop; nop; hlt")
    guest.vcpu.set_debug_regs([CODE + 1, 0, 0, 0, 0xFFFF0FF0, 0x401])
    fault = guest.fault()
    assert (fault.vector, fault.rip) == (1, CODE + 1)
    assert guest.vcpu.get_debug_regs()[4] & 1


@pytest.mark.needs_hardware("it sees no breakpoints")
def test_a_data_breakpoint(built: Build) -> None:
    guest = built(f"mov eax, [{DATA}]; mov [{DATA}], eax; nop; hlt")
    guest.vcpu.set_debug_regs([DATA, 0, 0, 0, 0xFFFF0FF0, 0xD0401])
    fault = guest.fault()
    assert (fault.vector, fault.rip) == (1, CODE + 14)


def test_cr2_and_cr8(built: Build) -> None:
    guest = built("mov rax, cr2; out 0x80, eax; hlt")
    guest.vcpu.set_sregs(cr2=0x1234)
    assert guest.out() == 0x1234
