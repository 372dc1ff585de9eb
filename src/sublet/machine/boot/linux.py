"""Loading a Linux bzImage by the 64-bit boot protocol, or the 32-bit one where the kernel has no other entry.

Reference: Linux 6.1, Documentation/x86/boot.rst and zero-page.rst.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sublet.errors import CorruptImage, UnsupportedImage, UsageError
from sublet.hw import GuestMemory
from sublet.machine import memory_map as mm
from sublet.machine.boot.cmdline import write_cmdline
from sublet.machine.boot.entry import BootState, long_mode_entry, protected_mode_entry
from sublet.machine.boot.files import BootFile, truncated
from sublet.machine.boot.initrd import Initrd, InitrdRules, load_initrd

HEADER_OFFSET: Final = 0x1F1
_HEADER_END: Final = 0x268
_SECTOR: Final = 512
_PARAGRAPH: Final = 16
_MINIMUM_VERSION: Final = 0x0202
"""The first protocol whose command line has an address of its own (Linux 2.4)."""
_VERSION_64: Final = 0x020C
_OLD_INITRD_MAXIMUM: Final = 0x37FF_FFFF
_OLD_CMDLINE_SIZE: Final = 255
_OLD_EXPANSION: Final = 4
"""Times its own size that a kernel is given to unpack into, before protocol 2.10 had a field for it."""
_LOADED_HIGH: Final = 0x01
_XLF_KERNEL_64: Final = 0x01
_XLF_CAN_BE_LOADED_ABOVE_4G: Final = 0x02
_ENTRY_64: Final = 0x200
_LOADER_UNDEFINED: Final = 0xFF
_SETUP_RNG_SEED: Final = 9
_E820_MAXIMUM: Final = 128


@dataclass(frozen=True, slots=True)
class SetupHeader:
    """The setup header's fields that we use, checked by `read_header`."""

    raw: bytes
    """The header as it is in the file, from offset 0x1f1."""
    kernel_offset: int
    """Where the protected-mode kernel starts in the file."""
    kernel_size: int
    initrd_addr_max: int
    alignment: int
    relocatable: bool
    above_4_gib: bool
    cmdline_size: int
    """Longest command line, without its NUL."""
    pref_address: int
    init_size: int
    """Bytes of RAM, from the load address, that the kernel needs until it reads the memory map."""
    is_64: bool
    """Whether it has a 64-bit entry."""
    takes_setup_data: bool


def is_bzimage(start: bytes) -> bool:
    """Whether a file that starts with these bytes (0x206 or more) has a Linux setup header."""
    return len(start) >= 0x206 and start[0x1FE:0x200] == b"\x55\xaa" and start[0x202:0x206] == b"HdrS"


def _field(header: bytes, layout: str, offset: int) -> int:
    (value,) = struct.unpack_from("<" + layout, header, offset)
    return int(value)


def _check_kind(path: Path, version: int, loadflags: int) -> None:
    if version < _MINIMUM_VERSION:
        raise UnsupportedImage(
            f"the kernel {path} speaks boot protocol {version >> 8}.{version & 0xFF:02}, "
            f"at least 2.02 is needed (Linux 2.4)"
        )
    if not loadflags & _LOADED_HIGH:
        raise UnsupportedImage(f"the kernel {path} is a zImage (loadflags bit 0 is clear), not a bzImage")


def read_header(file: BootFile) -> SetupHeader:
    """Read and check the setup header; fields that its protocol does not have get what they meant before.

    Raises:
        CorruptImage: Truncated, or a field cannot be right.
        UnsupportedImage: Not a bzImage of protocol 2.02 or later.
    """
    head = file.read(0, _HEADER_END, "the setup header")
    version = _field(head, "H", 0x206)
    _check_kind(file.path, version, head[0x211])
    kernel_offset = ((head[0x1F1] or 4) + 1) * _SECTOR
    stated_end = kernel_offset + _field(head, "I", 0x1F4) * _PARAGRAPH
    # memtest86+ and iPXE end inside their last paragraph.
    if file.size <= max(stated_end - _PARAGRAPH, kernel_offset):
        raise truncated(file, "the kernel (syssize)", stated_end)
    alignment, relocatable = _read_placement(file, head, version)
    kernel_size = file.size - kernel_offset
    init_size = _field(head, "I", 0x260) if version >= 0x020A else kernel_size * _OLD_EXPANSION
    if kernel_size > init_size:
        raise CorruptImage(
            f"the kernel {file.path} is damaged: init_size {init_size} is less than its {kernel_size} bytes"
        )
    raw_end = min(0x202 + head[0x201], _HEADER_END)
    xloadflags = _field(head, "H", 0x236) if version >= _VERSION_64 else 0
    return SetupHeader(
        raw=head[HEADER_OFFSET:raw_end],
        kernel_offset=kernel_offset,
        kernel_size=kernel_size,
        initrd_addr_max=_field(head, "I", 0x22C) if version >= 0x0203 else _OLD_INITRD_MAXIMUM,
        alignment=alignment,
        relocatable=relocatable,
        above_4_gib=bool(xloadflags & _XLF_CAN_BE_LOADED_ABOVE_4G),
        cmdline_size=_field(head, "I", 0x238) if version >= 0x0206 else _OLD_CMDLINE_SIZE,
        pref_address=_field(head, "Q", 0x258) if version >= 0x020A else mm.HIGH_MEMORY,
        init_size=init_size,
        is_64=bool(xloadflags & _XLF_KERNEL_64),
        takes_setup_data=version >= 0x0209,
    )


def _read_placement(file: BootFile, head: bytes, version: int) -> tuple[int, bool]:
    """(alignment in bytes, whether the kernel may be moved); before 2.05 it may not.

    A kernel that stays where it is needs no alignment, and iPXE names none.
    """
    if version < 0x0205 or head[0x234] == 0:
        return mm.HIGH_MEMORY, False
    alignment = _field(head, "I", 0x230)
    if alignment == 0 or alignment & (alignment - 1):
        raise CorruptImage(f"the kernel {file.path} is damaged: kernel_alignment is {alignment:#x}")
    return alignment, True


def choose_load_address(path: Path, header: SetupHeader, layout: mm.MemoryMap) -> int:
    """The preferred address, or, for a relocatable kernel, the lowest aligned one that fits.

    Raises:
        UsageError: The kernel does not fit in RAM below 3 GiB.
    """
    candidates = [header.pref_address]
    if header.relocatable:
        candidates.append(max(header.alignment, mm.HIGH_MEMORY))
    for gpa in candidates:
        if gpa >= mm.HIGH_MEMORY and gpa + header.init_size <= layout.low_ram_end:
            return gpa
    raise UsageError(
        f"the kernel {path} needs {header.init_size / mm.MIB:.1f} MiB from {header.pref_address:#x}, "
        f"the machine has {layout.ram_size // mm.MIB} MiB of memory",
        remedy="Give more --memory.",
    )


def _write_rng_seed(memory: GuestMemory) -> int:
    """Hand the kernel 32 random bytes as ``setup_data``; returns their address."""
    seed = os.urandom(32)
    memory.write(mm.BOOT_SETUP_DATA, struct.pack("<QII", 0, _SETUP_RNG_SEED, len(seed)) + seed)
    return mm.BOOT_SETUP_DATA


def build_zero_page(
    header: SetupHeader, load_gpa: int, initrd: Initrd, layout: mm.MemoryMap, rsdp_gpa: int, setup_data: int
) -> bytes:
    """``struct boot_params``, one page; everything not named here is zero."""
    page = bytearray(mm.PAGE_SIZE)
    page[HEADER_OFFSET : HEADER_OFFSET + len(header.raw)] = header.raw
    struct.pack_into("<Q", page, 0x070, rsdp_gpa)
    struct.pack_into("<II", page, 0x0C0, initrd.gpa >> 32, initrd.size >> 32)
    page[0x210] = _LOADER_UNDEFINED
    struct.pack_into("<I", page, 0x214, load_gpa)
    struct.pack_into("<II", page, 0x218, initrd.gpa & 0xFFFF_FFFF, initrd.size & 0xFFFF_FFFF)
    struct.pack_into("<I", page, 0x228, mm.BOOT_CMDLINE)
    struct.pack_into("<Q", page, 0x250, setup_data)
    entries = layout.e820()[:_E820_MAXIMUM]
    page[0x1E8] = len(entries)
    for index, entry in enumerate(entries):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * index, entry.gpa, entry.size, entry.kind)
    return bytes(page)


def load_bzimage(
    file: BootFile,
    initrd_path: Path | None,
    cmdline: str,
    memory: GuestMemory,
    layout: mm.MemoryMap,
    rsdp_gpa: int,
) -> BootState:
    """Load kernel, initrd, command line and zero page; returns how to enter the kernel.

    Raises:
        ImageError: The kernel is not one we can boot.
        UsageError: Something does not fit.
        HostRefused: A file cannot be read.
    """
    header = read_header(file)
    load_gpa = choose_load_address(file.path, header, layout)
    file.copy_to(memory, load_gpa, header.kernel_offset, header.kernel_size, "the kernel")
    rules = InitrdRules(load_gpa, load_gpa + header.init_size, header.initrd_addr_max, header.above_4_gib)
    initrd = load_initrd(initrd_path, memory, layout, rules)
    write_cmdline(memory, cmdline, header.cmdline_size)
    setup_data = _write_rng_seed(memory) if header.takes_setup_data else 0
    page = build_zero_page(header, load_gpa, initrd, layout, rsdp_gpa, setup_data)
    memory.write(mm.BOOT_ZERO_PAGE, page)
    if header.is_64:
        return long_mode_entry(memory, load_gpa + _ENTRY_64, mm.BOOT_ZERO_PAGE)
    return protected_mode_entry(memory, load_gpa, rsi=mm.BOOT_ZERO_PAGE)
