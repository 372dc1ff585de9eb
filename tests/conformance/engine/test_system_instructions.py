"""System instructions and rules of fetch and flags that a kernel relies on."""

from __future__ import annotations

import pytest
from tests.conformance.engine.guests import (
    APIC,
    CODE,
    CODE64,
    CR4_LONG,
    DATA,
    GDT,
    IDT,
    MMIO,
    PRESENT,
    STACK,
    TABLES,
    USER,
    USER_CODE64,
    USER_DATA,
    USER_STACK,
    WRITABLE,
    Build,
)
from tests.conformance.engine.test_irqchip import ENABLE, VECTOR, built_for_vector

from sublet.core import EXIT_INTERNAL_ERROR, Engine

ENTER_USER = (
    f"push {USER_DATA | 3}; push {USER_STACK}; push 0x3202; push {USER_CODE64 | 3}; push {USER}; iretq"
)
VA = 0x600000
PAGE = TABLES + 0x1000 * (VA >> 21 & 0xF)


def test_sti_hlt_is_not_interrupted_between(built_with_irqchip: Build) -> None:
    guest = built_for_vector(built_with_irqchip, ENABLE + "out 0x80, al; sti; hlt; out 0x82, al; hlt")
    guest.out()
    guest.vm.signal_msi(APIC, VECTOR)
    guest.out(0x81)
    guest.out(0x82)


def test_osxsave_in_cpuid_follows_cr4(built: Build) -> None:
    ask = "mov eax, 1; cpuid; shr ecx, 27; and ecx, 1; mov eax, ecx; out 0x80, eax;"
    assert built(f"{ask} mov rax, cr4; bts rax, 18; mov cr4, rax; {ask} hlt").outs(2) == [0, 1]


def test_code_crosses_into_a_missing_page(built: Build) -> None:
    guest = built(f"mov ebx, {VA + 0xFFE}; jmp rbx")
    guest.map_page(VA, DATA | PRESENT)
    guest.memory.write(DATA + 0xFFE, b"\xb8\x01")
    fault = guest.fault()
    assert (fault.vector, fault.error_code, fault.rip, guest.cr("cr2")) == (14, 16, VA + 0xFFE, VA + 0x1000)


def test_code_crosses_pages(built: Build) -> None:
    guest = built(f"mov ebx, {VA + 0xFFE}; jmp rbx")
    guest.map_page(VA, DATA | PRESENT)
    guest.memory.write_u64(PAGE + 8, DATA + 0x3000 | PRESENT)
    guest.memory.write(DATA + 0xFFE, b"\xb8\x01")
    guest.memory.write(DATA + 0x3000, b"\x02\x03\x04\xe7\x80")
    assert guest.out() == 0x04030201


@pytest.mark.parametrize(
    "code", [".byte 0xf0, 0x90", ".byte 0xf0, 0x01, 0xc0", ".byte 0x06", ".byte 0x0f, 0xff", ".byte 0xd6"]
)
def test_undefined_instructions(built: Build, code: str) -> None:
    fault = built(f"{code}; hlt").fault()
    assert (fault.vector, fault.rip) == (6, CODE)


def test_the_next_instruction_is_rewritten(built: Build) -> None:
    assert built("mov byte ptr [rip + 1], 7; mov al, 1; out 0x80, al; hlt").out() == 7


def test_a_string_store_rewrites_what_follows(built: Build) -> None:
    source = (
        "lea rdi, [rip + there]; mov al, 0x90; mov ecx, 2; rep stosb; there: ud2; mov al, 4; out 0x80, al"
    )
    assert built(source).out() == 4


@pytest.mark.needs_hardware("it loses IOPL")
def test_popf_in_user_mode_keeps_if_and_iopl(built: Build) -> None:
    user = "push 0; popfq; pushfq; pop rax; out 0x80, eax; hlt"
    guest = built(ENTER_USER, user=user)
    assert guest.out() & 0x3200 == 0x3000


def test_cli_and_sti_in_user_mode_need_iopl(built: Build) -> None:
    fault = built(ENTER_USER.replace("0x3202", "2"), user="sti; hlt").fault()
    assert (fault.vector, fault.rip) == (13, USER)


@pytest.mark.parametrize(
    "instruction", ["sgdt [0x210000]", "sidt [0x210000]", "str eax", "sldt eax", "smsw eax"]
)
def test_umip(built: Build, instruction: str) -> None:
    guest = built(ENTER_USER, user=instruction + "; hlt")
    guest.vcpu.set_sregs(cr4=CR4_LONG | 1 << 11)
    fault = guest.fault()
    assert (fault.vector, fault.error_code, fault.rip) == (13, 0, USER)


def test_descriptor_tables_are_stored_and_loaded(built: Build) -> None:
    guest = built(f"sgdt [{DATA}]; lidt [{DATA}]; sidt [{DATA + 16}]; out 0x80, al; hlt")
    guest.out()
    assert guest.memory.read(DATA, 10) == (71).to_bytes(2, "little") + GDT.to_bytes(8, "little")
    assert guest.memory.read(DATA + 16, 10) == guest.memory.read(DATA, 10)
    assert guest.vcpu.get_sregs()["idt"] != (IDT, 4095)


def test_ltr_marks_the_segment_busy(built: Build) -> None:
    guest = built("mov eax, 0x38; ltr ax; str ecx; mov eax, ecx; out 0x80, eax; hlt")
    guest.memory.write(GDT + 0x38 + 5, b"\x89")
    assert guest.out() == 0x38
    assert guest.memory.read(GDT + 0x38 + 5, 1) == b"\x8b"


def test_lar_and_lsl(built: Build) -> None:
    """Bits 19:16 of LAR are undefined (Intel SDM vol. 2A "LAR")."""
    source = f"mov ecx, {CODE64}; lar eax, ecx; out 0x80, eax; lsl eax, ecx; out 0x80, eax; hlt"
    rights, limit = built(source).outs(2)
    assert (rights & ~0xF0000, limit) == (0xA09B00, 0xFFFF_FFFF)


def test_loading_a_data_segment_reads_its_descriptor(built: Build) -> None:
    guest = built("mov eax, 0x40; mov fs, eax; mov eax, fs:[0]; out 0x80, eax; hlt")
    guest.vcpu.set_sregs(gdt=(GDT, 79))
    guest.memory.write_u64(GDT + 0x40, 0x00CF_9302_0000_FFFF)
    guest.memory.write_u32(DATA, 0x31)
    assert guest.out() == 0x31


def test_an_instruction_breakpoint_and_the_resume_flag(built: Build) -> None:
    guest = built(
        "nop; mov al, 3; out 0x80, al; hlt", handler="or dword ptr [rsp + 16], 0x10000; out 0x81, al; iretq"
    )
    guest.set_gate(1)
    guest.vcpu.set_debug_regs([CODE + 1, 0, 0, 0, 0xFFFF0FF0, 0x401])
    guest.out(0x81)
    assert guest.out() == 3


def test_int1(built: Build) -> None:
    fault = built(".byte 0xf1; hlt").fault()
    assert (fault.vector, fault.rip) == (1, CODE + 1)


def test_a_user_interrupt_switches_to_the_tss_stack(built: Build) -> None:
    guest = built(ENTER_USER, user="ud2")
    assert guest.fault().handler_rsp == STACK - 40


def test_a_cr3_load_drops_the_entries_of_its_pcid(built: Build, engine: Engine) -> None:
    if not any(leaf == 1 and ecx >> 17 & 1 for leaf, _, _, _, _, ecx, _ in engine.supported_cpuid()):
        pytest.xfail("this engine's CPUID has no PCIDs on this host")
    source = f"""
        mov eax, [{VA}]; out 0x80, eax
        mov qword ptr [{PAGE}], {DATA + 0x1000 | PRESENT}
        mov rax, cr3; mov cr3, rax; mov eax, [{VA}]; out 0x80, eax; hlt"""
    guest = built(source)
    guest.vcpu.set_sregs(cr4=CR4_LONG | 1 << 17)
    guest.map_page(VA, DATA | PRESENT)
    guest.memory.write_u32(DATA, 1)
    guest.memory.write_u32(DATA + 0x1000, 2)
    assert guest.outs(2) == [1, 2]


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_invpcid(built: Build, kind: int) -> None:
    source = f"""
        mov eax, [{VA}]; out 0x80, eax; mov qword ptr [{PAGE}], {DATA + 0x1000 | PRESENT}
        mov eax, {kind}; invpcid rax, [{DATA + 0x100}]; mov eax, [{VA}]; out 0x80, eax; hlt"""
    guest = built(source)
    guest.map_page(VA, DATA | PRESENT)
    guest.memory.write_u64(DATA + 0x108, VA)
    guest.memory.write_u32(DATA, 1)
    guest.memory.write_u32(DATA + 0x1000, 2)
    assert guest.outs(2) == [1, 2]


def test_the_guest_saves_and_restores_its_own_vector_state(built: Build) -> None:
    source = f"""
        mov rax, cr4; bts rax, 18; mov cr4, rax; xor ecx, ecx; xor edx, edx; mov eax, 7; xsetbv
        vmovups ymm3, [{DATA}]; xsave [{DATA + 0x1000}]; vzeroall
        mov eax, 7; xor edx, edx; xrstor [{DATA + 0x1000}]; vmovups [{DATA + 0x40}], ymm3; out 0x80, al"""
    guest = built(source)
    guest.memory.write(DATA, bytes(range(32)))
    guest.out()
    assert guest.memory.read(DATA + 0x40, 32) == bytes(range(32))


def test_avx_needs_xcr0(built: Build) -> None:
    source = "mov rax, cr4; bts rax, 18; mov cr4, rax; vpaddd ymm0, ymm0, ymm0; hlt"
    assert built(source).fault().vector == 6


def test_the_io_bitmap_opens_ports_to_user_mode(built: Build) -> None:
    guest = built(ENTER_USER.replace("0x3202", "2"), user="out 0x80, al; out 0x90, al; hlt")
    guest.memory.write(0x7000 + 0x66, b"\x68\x00")
    guest.memory.write(0x7000 + 0x68 + 16, b"\x00\x00\xff\xff")
    guest.vcpu.set_sregs(tr=(0x38, 0x7000, 0x7F, 0x8B))
    guest.out()
    fault = guest.fault()
    assert (fault.vector, fault.rip) == (13, USER + 2)


def test_code_in_a_device_is_no_crash(built: Build) -> None:
    guest = built(f"mov ebx, {MMIO:#x}; jmp rbx")
    assert guest.run().reason >= 0


def test_page_tables_in_a_device_are_no_crash(built: Build) -> None:
    guest = built("out 0x80, al; nop; hlt")
    guest.out()
    guest.vcpu.set_sregs(cr3=MMIO)
    assert guest.run().reason <= EXIT_INTERNAL_ERROR


def test_a_locked_store_to_the_page_that_runs(built: Build) -> None:
    guest = built("lock inc byte ptr [rip + 1]; mov al, 1; out 0x80, al; hlt")
    assert guest.out() == 2


def test_writes_to_read_only_user_pages_by_the_kernel_with_wp(built: Build) -> None:
    guest = built(f"mov [{VA}], eax; hlt")
    guest.map_page(VA, DATA | PRESENT | 4)
    fault = guest.fault()
    assert (fault.vector, fault.error_code) == (14, 3)
    assert not guest.memory.read_u64(PAGE) & WRITABLE
