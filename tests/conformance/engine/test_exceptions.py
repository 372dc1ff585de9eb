"""Exceptions: vectors, error codes, CR2, what is pushed, stacks, double and triple faults."""

from __future__ import annotations

import pytest
from tests.conformance.engine.guests import (
    CODE,
    CODE64,
    DATA,
    IDT,
    IST1,
    PRESENT,
    STACK,
    STUBS,
    TSS_SELECTOR,
    USER,
    USER_CODE64,
    USER_DATA,
    USER_PAGE,
    USER_STACK,
    WRITABLE,
    Build,
    Guest,
)

from sublet.core import EXIT_SHUTDOWN

NON_CANONICAL = 1 << 63
ENTER_USER = (
    f"push {USER_DATA | 3}; push {USER_STACK}; push 0x3002; push {USER_CODE64 | 3}; push {USER}; iretq"
)
"""IOPL is 3, so that the user's code may report through ports."""

FAULTS = [
    ("ud2", 6, None),
    ("xor ecx, ecx; div ecx", 0, None),
    ("mov eax, 0x80000000; cdq; mov ecx, -1; idiv ecx", 0, None),
    (f"mov rbx, {NON_CANONICAL:#x}; mov eax, [rbx]", 13, 0),
    ("mov eax, 0x58; mov ds, eax", 13, 0x58),
    ("mov eax, 0x40; ltr ax", 13, 0x40),
    ("mov ecx, 0x12345678; rdmsr", 13, 0),
    ("mov rax, cr0; btr rax, 0; mov cr0, rax", 13, 0),
    ("mov eax, 0x10000; xor edx, edx; xor ecx, ecx; xsetbv", 6, None),
    ("movaps xmm0, [0x20001]", 13, 0),
    ("int3", 3, None),
    ("int 0x30", 0x30, None),
    ("mov eax, [0x600000]", 14, 0),
]


@pytest.mark.parametrize(("source", "vector", "error_code"), FAULTS)
def test_faults_have_their_vector_and_error_code(
    built: Build, source: str, vector: int, error_code: int | None
) -> None:
    guest = built(source + "; hlt")
    guest.map_page(0x600000, 0)
    fault = guest.fault()
    assert (fault.vector, fault.error_code, fault.cs) == (vector, error_code, CODE64)


@pytest.mark.needs_hardware("it ignores reserved bits of CR4 above 31")
def test_reserved_bits_of_cr4(built: Build) -> None:
    fault = built("mov rax, cr4; bts rax, 63; mov cr4, rax; hlt").fault()
    assert (fault.vector, fault.error_code) == (13, 0)


def test_a_non_canonical_stack_address_is_a_stack_fault(built: Build) -> None:
    guest = built(f"mov rsp, {NON_CANONICAL:#x}; mov eax, [rsp]; hlt")
    guest.set_gate(12, STUBS + 4 * 12, ist=1)
    fault = guest.fault()
    assert (fault.vector, fault.error_code) == (12, 0)


def test_a_fault_pushes_the_faulting_instruction(built: Build) -> None:
    assert built("nop; ud2").fault().rip == CODE + 1


def test_int3_pushes_the_next_instruction(built: Build) -> None:
    assert built("nop; int3; hlt").fault().rip == CODE + 2


def test_a_faulting_instruction_changes_nothing(built: Build) -> None:
    guest = built("mov rax, 5; mov rbx, 0x600000; add rax, [rbx]; hlt")
    guest.map_page(0x600000, 0)
    guest.fault()
    assert (guest.regs()["rax"], guest.cr("cr2")) == (5, 0x600000)


def test_a_handler_returns_to_the_instruction_again(built: Build) -> None:
    handler = f"mov byte ptr [{CODE + 1}], 0x90; mov byte ptr [{CODE}], 0x90; iretq"
    guest = built("ud2; mov al, 3; out 0x80, al; hlt", handler=handler)
    guest.set_gate(6)
    assert guest.out() == 3


PAGE_FAULTS = [
    # source, entry of the page, error code: present 1, write 2, user 4, reserved 8, fetch 16
    ("mov eax, [0x600000]", 0, 0),
    ("mov [0x600000], eax", 0, 2),
    ("mov [0x600000], eax", 0x200000 | PRESENT, 3),
    ("mov eax, [0x600000]", 0x200000 | PRESENT | 1 << 51, 9),
    ("mov ebx, 0x600000; jmp rbx", 0, 16),
    ("mov ebx, 0x600000; jmp rbx", 0x200000 | PRESENT | 1 << 63, 17),
    ("lock add dword ptr [0x600000], 1", 0, 2),
    ("cmp dword ptr [0x600000], 1", 0, 0),
]


@pytest.mark.parametrize(("source", "entry", "error_code"), PAGE_FAULTS)
def test_page_fault_error_codes(built: Build, source: str, entry: int, error_code: int) -> None:
    guest = built(source + "; hlt")
    guest.map_page(0x600000, entry)
    fault = guest.fault()
    assert (fault.vector, fault.error_code, guest.cr("cr2")) == (14, error_code, 0x600000)


@pytest.mark.parametrize(
    ("source", "entry", "error_code"),
    [
        ("mov eax, [0x600000]", PRESENT, 5),
        ("mov [0x600000], eax", PRESENT | USER_PAGE, 7),
        ("mov [0x600000], eax", 0, 6),
        ("mov ebx, 0x600000; jmp rbx", PRESENT, 21),
    ],
)
def test_page_fault_error_codes_of_user_mode(built: Build, source: str, entry: int, error_code: int) -> None:
    guest = built(ENTER_USER, user=source + "; hlt")
    guest.map_page(0x600000, entry | (0x200000 if entry else 0))
    fault = guest.fault()
    assert (fault.vector, fault.error_code, fault.cs) == (14, error_code, USER_CODE64 | 3)
    assert fault.handler_rsp == STACK - 48


def test_a_fault_across_pages_names_the_page_that_is_missing(built: Build) -> None:
    guest = built("mov eax, [0x600ffe]; hlt")
    guest.map_page(0x600000, 0x200000 | PRESENT)
    guest.fault()
    assert guest.cr("cr2") == 0x601000


@pytest.mark.needs_hardware("it stores page by page")
def test_a_store_across_pages_that_faults_stores_nothing(built: Build) -> None:
    guest = built("mov rax, -1; mov [0x600ffc], rax; hlt")
    guest.map_page(0x600000, 0x200000 | PRESENT | WRITABLE)
    guest.fault()
    assert guest.memory.read_u32(0x200FFC) == 0


def test_a_string_instruction_stops_at_the_fault(built: Build) -> None:
    guest = built(f"lea rsi, [{DATA}]; lea rdi, [0x600ff0]; mov ecx, 0x20; rep movsb; hlt")
    guest.map_page(0x600000, 0x200000 | PRESENT | WRITABLE)
    fault = guest.fault()
    regs = guest.regs()
    assert (regs["rcx"], regs["rdi"], regs["rsi"]) == (0x10, 0x601000, DATA + 0x10)
    assert fault.rip == CODE + 0x15


def test_the_interrupt_stack_table(built: Build) -> None:
    guest = built("ud2")
    guest.set_gate(6, STUBS + 4 * 6, ist=1)
    fault = guest.fault()
    assert fault.handler_rsp == IST1 - 40
    assert fault.rsp == STACK


def test_the_stack_is_aligned_to_16_bytes(built: Build) -> None:
    guest = built("sub rsp, 5; ud2")
    fault = guest.fault()
    assert (fault.rsp, fault.handler_rsp) == (STACK - 5, (STACK - 5 & ~15) - 40)


@pytest.mark.needs_hardware("it knows no INT n in user mode")
def test_software_interrupts_check_the_gate(built: Build) -> None:
    guest = built(ENTER_USER, user="int 0x40; hlt")
    fault = guest.fault()
    assert (fault.vector, fault.error_code) == (13, 0x40 * 8 + 2)


@pytest.mark.needs_hardware("it knows no INT n in user mode")
def test_a_software_interrupt_from_user_mode(built: Build) -> None:
    guest = built(ENTER_USER, user="int 0x40; hlt")
    guest.set_gate(0x40, STUBS + 4 * 0x40, dpl=3)
    fault = guest.fault()
    assert (fault.vector, fault.rip, fault.rsp) == (0x40, USER + 2, USER_STACK)


@pytest.mark.parametrize(
    "source", ["hlt", "cli", "mov rax, cr3", "lgdt [0x20000]", "invlpg [0]", "wbinvd", "ltr ax"]
)
def test_privileged_instructions_fault_in_user_mode(built: Build, source: str) -> None:
    enter = ENTER_USER.replace("0x3002", "2")
    fault = built(enter, user=source + "; hlt").fault()
    assert (fault.vector, fault.error_code, fault.rip) == (13, 0, USER)


def test_user_ports_follow_iopl_and_the_bitmap(built: Build) -> None:
    enter = ENTER_USER.replace("0x3002", "2")
    fault = built(enter, user="out 0x80, al; hlt").fault()
    assert (fault.vector, fault.error_code) == (13, 0)


def clear_present(guest: Guest, vector: int) -> None:
    """Make a gate not present."""
    at = IDT + 16 * vector
    guest.memory.write_u64(at, guest.memory.read_u64(at) & ~(1 << 47))


def test_a_contributory_fault_during_another_is_a_double_fault(built: Build) -> None:
    guest = built("xor ecx, ecx; div ecx")
    clear_present(guest, 0)
    fault = guest.fault()
    assert (fault.vector, fault.error_code) == (8, 0)


@pytest.mark.needs_hardware("it makes a double fault of any two")
def test_a_fault_during_a_benign_one_is_itself(built: Build) -> None:
    guest = built("ud2")
    clear_present(guest, 6)
    fault = guest.fault()
    assert (fault.vector, fault.error_code) == (11, 6 * 8 + 3)


def test_a_missing_gate_is_not_present(built: Build) -> None:
    guest = built("int 0x50")
    clear_present(guest, 0x50)
    fault = guest.fault()
    assert (fault.vector, fault.error_code) == (11, 0x50 * 8 + 2)


def test_a_page_fault_on_the_stack_is_a_double_fault(built: Build) -> None:
    guest = built("mov rsp, 0x601000; ud2")
    guest.map_page(0x600000, 0)
    guest.set_gate(8, STUBS + 4 * 8, ist=1)
    fault = guest.fault()
    assert (fault.vector, fault.error_code, fault.rsp) == (8, 0, 0x601000)


def test_a_triple_fault_shuts_down(built: Build) -> None:
    guest = built("lidt [0x20000]; ud2")
    guest.expect(EXIT_SHUTDOWN)


def test_single_step(built: Build) -> None:
    guest = built("push 0x102; popfq; nop; nop; hlt", handler="out 0x81, al; iretq")
    guest.set_gate(1)
    guest.out(0x81)
    rip = guest.memory.read_u64(guest.regs()["rsp"])
    assert rip == CODE + 7
    guest.out(0x81)
    assert guest.memory.read_u64(guest.regs()["rsp"]) == CODE + 8


def test_the_task_register_must_be_a_tss(built: Build) -> None:
    fault = built("mov eax, 0x10; ltr ax; hlt").fault()
    assert (fault.vector, fault.error_code) == (13, 0x10)


def test_a_busy_tss_is_refused(built: Build) -> None:
    fault = built(f"mov eax, {TSS_SELECTOR}; ltr ax; hlt").fault()
    assert (fault.vector, fault.error_code) == (13, TSS_SELECTOR)


@pytest.mark.parametrize("source", ["movss xmm0, xmm1", "fld1"])
def test_ts_makes_device_not_available(built: Build, source: str) -> None:
    fault = built(f"mov rax, cr0; bts rax, 3; mov cr0, rax; {source}; hlt").fault()
    assert (fault.vector, fault.error_code) == (7, None)


def test_an_unmasked_sse_exception(built: Build) -> None:
    source = f"ldmxcsr [{DATA}]; xorps xmm0, xmm0; mov eax, 1; cvtsi2ss xmm1, eax; divss xmm1, xmm0; hlt"
    guest = built(source)
    guest.memory.write_u32(DATA, 0x1F80 & ~0x200)
    assert guest.fault().vector == 19


def test_an_unmasked_x87_exception(built: Build) -> None:
    guest = built(f"fldcw [{DATA}]; fld1; fldz; fdivp; fwait; hlt")
    guest.memory.write_u16(DATA, 0x37F & ~4)
    assert guest.fault().vector == 16
