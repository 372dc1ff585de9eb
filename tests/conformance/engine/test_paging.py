"""Paging in 64-bit mode: page sizes, protection, accessed and dirty bits, flushes."""

from __future__ import annotations

import pytest
from tests.conformance.engine.guests import (
    ACCESSED,
    CODE,
    CR4_LONG,
    DATA,
    DIRTY,
    HUGE,
    NX,
    PD_LOW,
    PDPT,
    PML4,
    PRESENT,
    TABLES,
    USER,
    USER_PAGE,
    WRITABLE,
    Build,
    Guest,
)

from sublet.core import Engine

VA = 0x600000
PAGE = TABLES + 0x1000 * (VA >> 21 & 0xF)
"""The entry that maps ``VA``."""
LOAD = f"mov eax, [{VA}]; out 0x80, eax; hlt"
SMEP, SMAP = 1 << 20, 1 << 21


def test_a_4_kib_page(built: Build) -> None:
    guest = built(LOAD)
    guest.map_page(VA, DATA | PRESENT)
    guest.memory.write_u32(DATA, 0x44)
    assert guest.out() == 0x44


def test_a_2_mib_page(built: Build) -> None:
    guest = built(f"mov eax, [{VA + 0x12345:#x}]; out 0x80, eax; hlt")
    guest.memory.write_u64(PD_LOW + 8 * (VA >> 21), HUGE | PRESENT)
    guest.memory.write_u32(0x12345, 0x22)
    assert guest.out() == 0x22


def test_a_1_gib_page(built: Build, engine: Engine) -> None:
    if not any(leaf == 0x8000_0001 and edx >> 26 & 1 for leaf, *_, edx in engine.supported_cpuid()):
        pytest.xfail("this engine's CPUID has no 1 GiB pages on this host")
    guest = built(f"mov rbx, {(1 << 30) + DATA:#x}; mov eax, [rbx]; out 0x80, eax; hlt")
    guest.memory.write_u64(PDPT + 8, HUGE | PRESENT)
    guest.memory.write_u32(DATA, 0x11)
    assert guest.out() == 0x11


def test_the_upper_half(built: Build) -> None:
    guest = built(f"mov rbx, {0xFFFF_8000_0000_0000 + DATA:#x}; mov eax, [rbx]; out 0x80, eax; hlt")
    guest.memory.write_u64(PML4 + 8 * 256, PDPT | PRESENT | WRITABLE)
    guest.memory.write_u32(DATA, 0x88)
    assert guest.out() == 0x88


def test_accessed_and_dirty_bits(built: Build) -> None:
    guest = built(f"mov eax, [{VA}]; out 0x80, al; mov [{VA}], eax; out 0x80, al; hlt")
    guest.map_page(VA, DATA | PRESENT | WRITABLE)
    guest.out()
    assert guest.memory.read_u64(PAGE) & (ACCESSED | DIRTY) == ACCESSED
    assert guest.memory.read_u64(PML4) & ACCESSED
    guest.out()
    assert guest.memory.read_u64(PAGE) & (ACCESSED | DIRTY) == ACCESSED | DIRTY


def test_a_cleared_dirty_bit_is_set_again_after_invlpg(built: Build) -> None:
    guest = built(f"again: invlpg [{VA}]; mov [{VA}], eax; out 0x80, al; jmp again")
    guest.map_page(VA, DATA | PRESENT | WRITABLE)
    for _ in range(3):
        guest.out()
        assert guest.memory.read_u64(PAGE) & DIRTY
        guest.memory.write_u64(PAGE, DATA | PRESENT | WRITABLE)


def test_the_supervisor_ignores_write_protection_without_wp(built: Build) -> None:
    guest = built(f"mov rax, cr0; btr rax, 16; mov cr0, rax; mov dword ptr [{VA}], 9; out 0x80, al; hlt")
    guest.map_page(VA, DATA | PRESENT)
    guest.out()
    assert guest.memory.read_u32(DATA) == 9


def test_wp_set_again_protects_again(built: Build) -> None:
    source = f"""
        mov rax, cr0; btr rax, 16; mov cr0, rax; mov dword ptr [{VA}], 9
        bts rax, 16; mov cr0, rax; mov dword ptr [{VA}], 10; hlt"""
    guest = built(source)
    guest.map_page(VA, DATA | PRESENT)
    assert guest.fault().error_code == 3
    assert guest.memory.read_u32(DATA) == 9


@pytest.mark.parametrize("operation", ["invlpg [0x600000]", "mov rax, cr3; mov cr3, rax"])
def test_a_changed_entry_shows_after_a_flush(built: Build, operation: str) -> None:
    source = (
        f"mov eax, [{VA}]; out 0x80, eax; mov qword ptr [{PAGE}], {DATA + 0x1000 | PRESENT}; {operation}; "
        + LOAD
    )
    guest = built(source)
    guest.map_page(VA, DATA | PRESENT)
    guest.memory.write_u32(DATA, 1)
    guest.memory.write_u32(DATA + 0x1000, 2)
    assert guest.outs(2) == [1, 2]


def test_code_behind_a_remapped_page(built: Build) -> None:
    source = f"""
        mov ebx, {VA}; call rbx; out 0x80, al
        mov qword ptr [{PAGE}], {DATA + 0x1000 | PRESENT}; invlpg [rbx]; call rbx; out 0x80, al; hlt"""
    guest = built(source)
    guest.map_page(VA, DATA | PRESENT)
    guest.memory.write(DATA, b"\xb0\x01\xc3")
    guest.memory.write(DATA + 0x1000, b"\xb0\x02\xc3")
    assert guest.outs(2) == [1, 2]


def test_code_that_rewrites_itself_through_another_mapping(built: Build) -> None:
    guest = built(f"again: mov al, 1; out 0x80, al; inc byte ptr [{VA + 1}]; jmp again")
    guest.map_page(VA, CODE | PRESENT | WRITABLE)
    assert guest.outs(4) == [1, 2, 3, 4]


def test_global_pages_survive_cr3_loads_only(built: Build) -> None:
    source = f"mov eax, [{VA}]; mov qword ptr [{PAGE}], 0; mov rax, cr4; btr rax, 7; mov cr4, rax; {LOAD}"
    guest = built(source)
    guest.map_page(VA, DATA | PRESENT | 1 << 8)
    assert guest.fault().vector == 14


def with_cr4(guest: Guest, bits: int) -> Guest:
    """Turn on features."""
    guest.vcpu.set_sregs(cr4=CR4_LONG | bits)
    return guest


def test_smep_keeps_the_supervisor_from_user_code(built: Build) -> None:
    guest = with_cr4(built(f"mov ebx, {USER}; jmp rbx", user="hlt"), SMEP)
    fault = guest.fault()
    assert (fault.vector, fault.error_code, fault.rip) == (14, 17, USER)


def test_smap_keeps_the_supervisor_from_user_data(built: Build) -> None:
    guest = with_cr4(built(f"mov eax, [{USER}]; hlt"), SMAP)
    fault = guest.fault()
    assert (fault.vector, fault.error_code, guest.cr("cr2")) == (14, 1, USER)


def test_stac_lifts_smap_and_clac_puts_it_back(built: Build) -> None:
    source = f"stac; mov eax, [{USER}]; out 0x80, al; clac; mov eax, [{USER}]; hlt"
    guest = with_cr4(built(source), SMAP)
    guest.out()
    assert guest.fault().vector == 14


def test_nx_is_reserved_without_nxe(built: Build) -> None:
    guest = built(LOAD)
    guest.map_page(VA, DATA | PRESENT | NX)
    guest.vcpu.set_sregs(efer=0x501)
    fault = guest.fault()
    assert (fault.vector, fault.error_code) == (14, 9)


def test_nx_of_an_upper_table_counts(built: Build) -> None:
    guest = built(f"mov ebx, {VA}; jmp rbx")
    guest.map_page(VA, DATA | PRESENT)
    entry = PD_LOW + 8 * (VA >> 21)
    guest.memory.write_u64(entry, guest.memory.read_u64(entry) | NX)
    fault = guest.fault()
    assert (fault.vector, fault.error_code) == (14, 17)


def test_a_table_outside_memory_is_no_mapping(built: Build) -> None:
    guest = built(LOAD)
    guest.memory.write_u64(PD_LOW + 8 * (VA >> 21), 0x7000_0000 | PRESENT | WRITABLE | USER_PAGE)
    guest.run()
