"""A Multiboot kernel of the user's that the BIOS starts, by the option ROM of `kernel_rom`.

The host decides where everything goes; the ROM copies it, asks the BIOS for the memory map, and enters the
kernel. What both know of each other is the start block.

Reference: Multiboot Specification 0.6.96 §3.2 "Machine state"; Multiboot2 Specification 2.0 §3.3;
ACPI 6.5 §15.1 "INT 15H, E820H - Query System Address Map".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sublet.devices.platform.fw_cfg import FwCfg
from sublet.errors import UnsupportedImage, UsageError
from sublet.machine.boot.files import BootFile, open_boot_file
from sublet.machine.boot.multiboot import (
    MultibootPlan,
    describe,
    module_files,
    plan_multiboot,
)
from sublet.machine.boot.multiboot_header import find_header
from sublet.machine.boot.multiboot_info import ENTRY_STRIDE, Information
from sublet.machine.config import MachineConfig
from sublet.machine.kernel_rom import MAXIMUM_COPIES, Code, Copy, build_kernel_rom
from sublet.machine.memory_map import BIOS_TOP, BOOT_STACK_TOP, MIB, MemoryMap

MULTIBOOT_ENTRY: Final[Code] = (
    ("b80010", "mov ax, 0x1000"),
    ("8ed8", "mov ds, ax"),
    ("8ec0", "mov es, ax"),
    # Basic memory: KiB from 0 on, and, from the map's entry there, from 1 MiB on.
    ("cd12", "int 0x12"),
    ("660fb7c0", "movzx eax, ax"),
    ("8b360600", "mov si, word ptr [6]"),
    ("668904", "mov dword ptr [si], eax"),
    ("6631db", "xor ebx, ebx"),
    ("8b3e0000", "mov di, word ptr [0]"),
    ("66b820e80000", "map: mov eax, 0xe820"),
    ("66ba50414d53", "mov edx, 0x534d4150"),
    ("66b914000000", "mov ecx, 20"),
    ("cd15", "int 0x15"),
    ("7223", "jc mapped"),
    ("66813d00001000", "cmp dword ptr [di], 0x100000"),
    ("750c", "jne another"),
    ("668b4508", "mov eax, dword ptr [di + 8]"),
    ("66c1e80a", "shr eax, 10"),
    ("66894404", "mov dword ptr [si + 4], eax"),
    ("83c718", "another: add di, 24"),
    ("6685db", "test ebx, ebx"),
    ("7406", "jz mapped"),
    ("3b3e0800", "cmp di, word ptr [8]"),
    ("72c7", "jb map"),
    # The bytes of the map, where lengths are, and the tag that ends version 2's.
    ("660fb7c7", "mapped: movzx eax, di"),
    ("2b060000", "sub ax, word ptr [0]"),
    ("8b360200", "mov si, word ptr [2]"),
    ("660104", "add dword ptr [si], eax"),
    ("8b360400", "mov si, word ptr [4]"),
    ("660104", "add dword ptr [si], eax"),
    ("66c70500000000", "mov dword ptr [di], 0"),
    ("66c7450408000000", "mov dword ptr [di + 4], 8"),
    # A copy of the RSDP, where one is wanted.
    ("8b3e0a00", "mov di, word ptr [10]"),
    ("85ff", "test di, di"),
    ("742b", "jz enter"),
    ("ba00e0", "mov dx, 0xe000"),
    ("8ee2", "find: mov fs, dx"),
    ("6466813e000052534420", "cmp dword ptr fs:[0], 0x20445352"),
    ("750c", "jne next"),
    ("6466813e040050545220", "cmp dword ptr fs:[4], 0x20525450"),
    ("7405", "je found"),
    ("42", "next: inc dx"),
    ("75e3", "jnz find"),
    ("eb09", "jmp enter"),
    ("31f6", "found: xor si, si"),
    ("8b0e0c00", "mov cx, word ptr [12]"),
    ("64f3a4", "rep movsb es:[di], fs:[si]"),
    ("fa", "enter: cli"),
    ("0f01161000", "lgdt [0x10]"),
    ("0f20c0", "mov eax, cr0"),
    ("0c01", "or al, 1"),
    ("0f22c0", "mov cr0, eax"),
    ("66ea300001000800", ".byte 0x66, 0xea; .long 0x10030; .word 8"),
)
"""Completes what the kernel is told, with DS and ES at the start block, and goes to the block's own code."""

_BLOCK_GPA: Final = 0x10000
_GDTR_OFFSET: Final = 0x10
_GDT_OFFSET: Final = 0x18
_CODE_OFFSET: Final = 0x30
_IGNORED_OFFSET: Final = 0x5C
"""32 bits that are counted up where there is no second length."""
_INFORMATION_OFFSET: Final = 0x60
_BLOCK_MAXIMUM: Final = 0xF000
_ENTRIES: Final = 64
"""Of the memory map, at most."""
_FIRST_ITEM: Final = 0x8100
"""Items of fw_cfg that no firmware asks for."""
_RSDP: Final = bytes(36)
"""Revision 0, as fw_cfg's tables have it: 20 bytes are told."""
_FLAT_CODE, _FLAT_DATA = 0x00CF9B000000FFFF, 0x00CF93000000FFFF


def offer_multiboot(fw_cfg: FwCfg, config: MachineConfig, kernel: Path, layout: MemoryMap) -> bytes:
    """Add kernel, modules and start block as items; returns the ROM that puts them in their places.

    Raises:
        UsageError: A file is missing, or there is not the memory for them.
        ImageError: The kernel is damaged.
        HostRefused: A file cannot be read.
    """
    with open_boot_file(kernel, "kernel") as file:
        plan = _plan(file, config, layout)
    block = _start_block(plan)
    parts = [(piece.read, piece.total, piece.gpa) for piece in plan.pieces if piece.total]
    parts.insert(0, (lambda: block, len(block), _BLOCK_GPA))
    if len(parts) > MAXIMUM_COPIES:
        raise UsageError(
            f"the kernel {kernel} and its modules have {len(parts)} parts, too many for the BIOS"
        )
    for number, (content, _, _) in enumerate(parts, start=_FIRST_ITEM):
        fw_cfg.add_item(number, content)
    copies = [Copy(number, size, gpa) for number, (_, size, gpa) in enumerate(parts, start=_FIRST_ITEM)]
    return build_kernel_rom(copies, MULTIBOOT_ENTRY)


def _plan(file: BootFile, config: MachineConfig, layout: MemoryMap) -> MultibootPlan:
    header = find_header(file)
    if header is None:
        raise UnsupportedImage(
            f"the kernel {file.path} is neither a Linux bzImage nor has it a multiboot header: "
            "the BIOS starts no other",
            remedy="Choose --machine microvm for a PVH kernel.",
        )
    plan = plan_multiboot(file, header, module_files(config.initrd, config.modules), config.cmdline, layout)
    end = max(piece.end for piece in plan.pieces)
    if end > layout.low_ram_end - BIOS_TOP:
        raise UsageError(
            f"the kernel {file.path} with its modules ends at {end / MIB:.1f} MiB, too near to the end "
            f"of the machine's {layout.ram_size // MIB} MiB of memory, where the BIOS keeps tables",
            remedy="Give more --memory.",
        )
    return plan


def _start_block(plan: MultibootPlan) -> bytes:
    """What lies at `_BLOCK_GPA`: offsets for the ROM, a GDT, 32-bit code, and what the kernel is told.

    Raises:
        UsageError: The command line and the modules' arguments are too long.
    """
    gpa = _BLOCK_GPA + _INFORMATION_OFFSET
    information = describe(plan, (0, 0), (), _RSDP, gpa)
    room = _room_for_map(plan.version)
    block = bytearray(_INFORMATION_OFFSET) + information.data + room
    if len(block) > _BLOCK_MAXIMUM:
        raise UsageError("the command line and the modules' arguments are too long for the BIOS")
    struct.pack_into("<7H", block, 0, *_offsets(information))
    struct.pack_into("<HI", block, _GDTR_OFFSET, 23, _BLOCK_GPA + _GDT_OFFSET)
    struct.pack_into("<QQQ", block, _GDT_OFFSET, 0, _FLAT_CODE, _FLAT_DATA)
    code = _enter_kernel(plan.entry, plan.magic, gpa)
    block[_CODE_OFFSET : _CODE_OFFSET + len(code)] = code
    return bytes(block)


def _offsets(information: Information) -> Sequence[int]:
    """First entry of the map, two lengths, basic memory, end of the map's room, RSDP and its size."""
    at = _INFORMATION_OFFSET
    first, *more = (at + length for length in information.lengths)
    second = more[0] if more else _IGNORED_OFFSET
    entries = at + information.entries
    rsdp, size = (0, 0) if information.rsdp is None else information.rsdp
    end = entries + _ENTRIES * ENTRY_STRIDE
    return entries, first, second, at + information.basic_memory, end, rsdp and at + rsdp, size


def _room_for_map(version: int) -> bytes:
    """Entries to be filled in, and the tag that ends them; those of version 1 begin with their size."""
    entry = struct.pack("<I", 20) if version == 1 else b""
    return entry.ljust(ENTRY_STRIDE, b"\0") * (_ENTRIES + 1)


def _enter_kernel(entry: int, magic: int, information: int) -> bytes:
    """mov ax, 16; mov ds, es, fs, gs, ss, ax; mov esp, eax, ebx, ecx, immediate; jmp ecx."""
    segments = bytes.fromhex("66b81000 8ed8 8ec0 8ee0 8ee8 8ed0")
    registers = zip((0xBC, 0xB8, 0xBB, 0xB9), (BOOT_STACK_TOP, magic, information, entry), strict=True)
    return segments + b"".join(struct.pack("<BI", *pair) for pair in registers) + b"\xff\xe1"
