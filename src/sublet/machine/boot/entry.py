"""Processor state in which a loaded kernel is entered, and the tables that state needs in RAM."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from sublet.hw import GuestMemory
from sublet.machine import memory_map as mm

Segment = tuple[int, int, int, int]

# Segment attributes: descriptor bits 40 to 55 (Intel SDM vol. 3A §3.4.5), limit bits left out.
_CODE_64: Final = 0xA09B
_CODE_32: Final = 0xC09B
_DATA: Final = 0xC093
_TSS_BUSY: Final = 0x008B
_UNUSABLE_LDT: Final = 0x1_0082

_BOOT_CS: Final = 0x10
_BOOT_DS: Final = 0x18
_BOOT_TR: Final = 0x20
_FLAT_LIMIT: Final = 0xFFFF_FFFF

_CR0_PE_ET: Final = 0x11
_CR0_PG: Final = 0x8000_0000
_CR4_PAE: Final = 0x20
_EFER_LME_LMA: Final = 0x500
_RFLAGS_RESERVED: Final = 0x2

# MTRRs on, all memory write-back, as firmware leaves RAM: kernels set up the PAT only then
# (Intel SDM vol. 3A §12.11.2.1 "IA32_MTRR_DEF_TYPE MSR").
_MTRR_DEF_TYPE: Final = 0x2FF
_MTRR_ENABLED_WRITE_BACK: Final = 0x806
_MEMORY_TYPES: Final = ((_MTRR_DEF_TYPE, _MTRR_ENABLED_WRITE_BACK),)

_PTE_PRESENT_WRITE: Final = 0x3
_PDE_LARGE: Final = 0x80
_MAPPED_GIB: Final = 4


@dataclass(frozen=True, slots=True)
class BootState:
    """Registers of the boot processor; those not named keep their reset values."""

    regs: dict[str, int]
    sregs: dict[str, object]
    msrs: tuple[tuple[int, int], ...] = _MEMORY_TYPES


def _descriptor(attributes: int, base: int, limit: int) -> int:
    """Encode a segment descriptor; ``limit`` in bytes for G=0, 4 GiB - 1 for G=1."""
    raw_limit = limit >> 12 if attributes & 0x8000 else limit
    return (
        (raw_limit & 0xFFFF)
        | (base & 0xFF_FFFF) << 16
        | (attributes & 0xF0FF) << 40
        | (raw_limit >> 16 & 0xF) << 48
        | (base >> 24 & 0xFF) << 56
    )


def _write_gdt(memory: GuestMemory, code_attributes: int) -> tuple[int, int]:
    """Write the GDT of the boot protocol (code 0x10, data 0x18, TSS 0x20); returns (base, limit)."""
    entries = (
        0,
        0,
        _descriptor(code_attributes, 0, _FLAT_LIMIT),
        _descriptor(_DATA, 0, _FLAT_LIMIT),
        _descriptor(_TSS_BUSY, 0, 0x67),
        0,  # upper half of the TSS descriptor in long mode
    )
    table = struct.pack(f"<{len(entries)}Q", *entries)
    memory.write(mm.BOOT_GDT, table)
    return mm.BOOT_GDT, len(table) - 1


def _flat_sregs(memory: GuestMemory, code_attributes: int) -> dict[str, object]:
    data: Segment = (_BOOT_DS, 0, _FLAT_LIMIT, _DATA)
    return {
        "cs": (_BOOT_CS, 0, _FLAT_LIMIT, code_attributes),
        **dict.fromkeys(("ds", "es", "ss", "fs", "gs"), data),
        "tr": (_BOOT_TR, 0, 0x67, _TSS_BUSY),
        "ldtr": (0, 0, 0, _UNUSABLE_LDT),
        "gdt": _write_gdt(memory, code_attributes),
        "idt": (0, 0),
        "cr0": _CR0_PE_ET,
        "cr3": 0,
        "cr4": 0,
        "efer": 0,
    }


def _write_identity_page_tables(memory: GuestMemory) -> int:
    """Map the first 4 GiB to themselves with 2 MiB pages; returns the address of the PML4."""
    pml4, pdpt = mm.BOOT_PAGE_TABLES, mm.BOOT_PAGE_TABLES + mm.PAGE_SIZE
    directories = pdpt + mm.PAGE_SIZE
    memory.write(pml4, struct.pack("<Q", pdpt | _PTE_PRESENT_WRITE).ljust(mm.PAGE_SIZE, b"\0"))
    pointers = [directories + i * mm.PAGE_SIZE | _PTE_PRESENT_WRITE for i in range(_MAPPED_GIB)]
    memory.write(pdpt, struct.pack(f"<{_MAPPED_GIB}Q", *pointers).ljust(mm.PAGE_SIZE, b"\0"))
    count = _MAPPED_GIB * 512
    pages = [i * 2 * mm.MIB | _PDE_LARGE | _PTE_PRESENT_WRITE for i in range(count)]
    memory.write(directories, struct.pack(f"<{count}Q", *pages))
    return pml4


def long_mode_entry(memory: GuestMemory, rip: int, rsi: int) -> BootState:
    """Long mode, identity paging of 4 GiB, flat segments, interrupts off (Linux 64-bit boot protocol)."""
    sregs = _flat_sregs(memory, _CODE_64) | {
        "cr0": _CR0_PE_ET | _CR0_PG,
        "cr3": _write_identity_page_tables(memory),
        "cr4": _CR4_PAE,
        "efer": _EFER_LME_LMA,
    }
    stack = mm.BOOT_STACK_TOP
    regs = {"rip": rip, "rsi": rsi, "rsp": stack, "rbp": stack, "rflags": _RFLAGS_RESERVED}
    return BootState(regs, sregs)


def protected_mode_entry(memory: GuestMemory, rip: int, **registers: int) -> BootState:
    """32-bit protected mode, paging off, flat segments, interrupts off.

    What the Xen PVH boot ABI, the Linux 32-bit boot protocol and Multiboot ask for alike; they differ in
    the general ``registers``, all others are zero.
    """
    regs = {"rip": rip, "rsp": mm.BOOT_STACK_TOP, "rflags": _RFLAGS_RESERVED} | registers
    return BootState(regs, _flat_sregs(memory, _CODE_32))
