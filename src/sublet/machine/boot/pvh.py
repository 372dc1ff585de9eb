"""Loading an ELF kernel by its PVH entry point.

References: Xen docs/misc/pvh.pandoc "x86/HVM direct boot ABI"; xen/include/public/arch-x86/hvm/start_info.h;
System V ABI gABI 4.1 "Object Files".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sublet.errors import CorruptImage, UnsupportedImage
from sublet.hw import GuestMemory
from sublet.machine import memory_map as mm
from sublet.machine.boot.cmdline import write_cmdline
from sublet.machine.boot.elf import ProgramHeader, check_segments, read_headers
from sublet.machine.boot.entry import BootState, protected_mode_entry
from sublet.machine.boot.files import BootFile
from sublet.machine.boot.initrd import Initrd, InitrdRules, load_initrd

_PT_NOTE: Final = 4
_PHYS32_ENTRY: Final = 18
_NOTES_MAXIMUM: Final = 1 << 16

_START_INFO_MAGIC: Final = 0x336E_C578
_START_INFO_SIZE: Final = 56
_MODULE_OFFSET: Final = 0x100
_MEMMAP_OFFSET: Final = 0x200
_CMDLINE_LIMIT: Final = 4095


@dataclass(frozen=True, slots=True)
class ElfKernel:
    """A checked ELF kernel: the segments to load, by address, and the 32-bit physical entry."""

    segments: tuple[ProgramHeader, ...]
    entry: int

    @property
    def start(self) -> int:
        return self.segments[0].paddr

    @property
    def end(self) -> int:
        return max(segment.paddr + segment.memsz for segment in self.segments)


def iter_notes(data: bytes, align: int) -> Iterator[tuple[bytes, int, bytes]]:
    """(name, type, description) of each note; stops at the first that does not fit."""
    align = 8 if align == 8 else 4
    offset = 0
    while offset + 12 <= len(data):
        namesz, descsz, kind = struct.unpack_from("<III", data, offset)
        name_at = offset + 12
        desc_at = -(-(name_at + namesz) // align) * align
        if desc_at + descsz > len(data):
            return
        yield data[name_at : name_at + namesz], kind, data[desc_at : desc_at + descsz]
        offset = -(-(desc_at + descsz) // align) * align


def _find_entry(file: BootFile, headers: tuple[ProgramHeader, ...]) -> int | None:
    for header in headers:
        if header.kind != _PT_NOTE:
            continue
        if header.filesz > _NOTES_MAXIMUM:
            raise CorruptImage(f"the kernel {file.path} is damaged: a note segment has {header.filesz} bytes")
        notes = file.read(header.offset, header.filesz, "a note segment")
        for name, kind, description in iter_notes(notes, header.align):
            if name.rstrip(b"\0") == b"Xen" and kind == _PHYS32_ENTRY and len(description) in (4, 8):
                return int.from_bytes(description, "little")
    return None


def has_pvh_entry(file: BootFile) -> bool:
    """Whether an ELF file can be entered this way.

    Raises:
        ImageError: It is no ELF file for x86, or damaged.
    """
    return _find_entry(file, read_headers(file).headers) is not None


def read_elf(file: BootFile, layout: mm.MemoryMap) -> ElfKernel:
    """Read and check the headers.

    Raises:
        CorruptImage: Truncated, overlapping segments, or a field cannot be right.
        UnsupportedImage: Of another machine, not executable, or without a PVH entry.
        UsageError: A segment lies outside the machine's RAM.
    """
    elf = read_headers(file)
    segments = elf.segments()
    if not segments:
        raise CorruptImage(f"the kernel {file.path} has nothing to load (no PT_LOAD segment)")
    entry = _find_entry(file, elf.headers)
    if entry is None:
        raise UnsupportedImage(
            f"the kernel {file.path} is an ELF file without a PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY) "
            "and without a multiboot header",
            remedy="Give a bzImage (vmlinuz), or build the kernel with CONFIG_PVH.",
        )
    check_segments(file, segments, layout)
    if not any(s.paddr <= entry < s.paddr + s.memsz for s in segments):
        raise CorruptImage(f"the kernel {file.path} is damaged: its PVH entry {entry:#x} is in no segment")
    return ElfKernel(segments, entry)


def build_start_info(layout: mm.MemoryMap, initrd: Initrd, rsdp_gpa: int) -> bytes:
    """``hvm_start_info`` version 1, its module list and its memory map, for `BOOT_START_INFO`."""
    base = mm.BOOT_START_INFO
    memmap = layout.e820()
    modules = 1 if initrd.size else 0
    info = struct.pack(
        "<IIIIQQQQII",
        _START_INFO_MAGIC,
        1,
        0,
        modules,
        base + _MODULE_OFFSET if modules else 0,
        mm.BOOT_CMDLINE,
        rsdp_gpa,
        base + _MEMMAP_OFFSET,
        len(memmap),
        0,
    )
    blob = bytearray(_MEMMAP_OFFSET)
    blob[:_START_INFO_SIZE] = info
    struct.pack_into("<QQQQ", blob, _MODULE_OFFSET, initrd.gpa, initrd.size, 0, 0)
    for entry in memmap:
        blob += struct.pack("<QQII", entry.gpa, entry.size, entry.kind, 0)
    return bytes(blob)


def load_elf(
    file: BootFile,
    initrd_path: Path | None,
    cmdline: str,
    memory: GuestMemory,
    layout: mm.MemoryMap,
    rsdp_gpa: int,
) -> BootState:
    """Load kernel, initrd, command line and start info; returns how to enter the kernel.

    RAM must be zero: BSS is not written.

    Raises:
        ImageError: The kernel is not one we can boot.
        UsageError: Something does not fit.
        HostRefused: A file cannot be read.
    """
    kernel = read_elf(file, layout)
    for segment in kernel.segments:
        file.copy_to(memory, segment.paddr, segment.offset, segment.filesz, "a segment")
    rules = InitrdRules(kernel.start, kernel.end)
    initrd = load_initrd(initrd_path, memory, layout, rules)
    write_cmdline(memory, cmdline, _CMDLINE_LIMIT)
    memory.write(mm.BOOT_START_INFO, build_start_info(layout, initrd, rsdp_gpa))
    return protected_mode_entry(memory, kernel.entry, rbx=mm.BOOT_START_INFO)
