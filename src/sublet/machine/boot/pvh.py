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

from sublet.errors import CorruptImage, UnsupportedImage, UsageError
from sublet.hw import GuestMemory
from sublet.machine import memory_map as mm
from sublet.machine.boot.cmdline import write_cmdline
from sublet.machine.boot.entry import BootState, protected_mode_entry
from sublet.machine.boot.files import BootFile
from sublet.machine.boot.initrd import Initrd, InitrdRules, load_initrd

ELF_MAGIC: Final = b"\x7fELF"
_EM_386: Final = 3
_EM_X86_64: Final = 62
_MACHINES: Final = {2: "SPARC", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "S/390", 40: "ARM"} | {
    183: "AArch64",
    243: "RISC-V",
    258: "LoongArch",
}
_ET_EXEC: Final = 2
_ET_DYN: Final = 3
_PT_LOAD: Final = 1
_PT_NOTE: Final = 4
_PHYS32_ENTRY: Final = 18
_SEGMENTS_MAXIMUM: Final = 128
_NOTES_MAXIMUM: Final = 1 << 16

_START_INFO_MAGIC: Final = 0x336E_C578
_START_INFO_SIZE: Final = 56
_MODULE_OFFSET: Final = 0x100
_MEMMAP_OFFSET: Final = 0x200
_CMDLINE_LIMIT: Final = 4095


@dataclass(frozen=True, slots=True)
class ProgramHeader:
    """One program header, both classes of ELF alike."""

    kind: int
    offset: int
    paddr: int
    filesz: int
    memsz: int
    align: int


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


def _check_identity(file: BootFile) -> bool:
    """Check class, byte order, type and machine; returns whether the file is ELF64."""
    ident = file.read(0, 20, "the ELF identification")
    elf_class, byte_order = ident[4], ident[5]
    order = ">" if byte_order == 2 else "<"
    kind, machine = struct.unpack_from(order + "HH", ident, 16)
    if machine not in (_EM_386, _EM_X86_64) or byte_order != 1:
        name = _MACHINES.get(machine, f"machine {machine}")
        raise UnsupportedImage(
            f"the kernel {file.path} is an ELF file for {name} (e_machine), not for x86",
            remedy="Give a kernel built for x86-64.",
        )
    if elf_class not in (1, 2):
        raise CorruptImage(f"the kernel {file.path} is damaged: ELF class (EI_CLASS) is {elf_class}")
    if kind not in (_ET_EXEC, _ET_DYN):
        raise UnsupportedImage(f"the kernel {file.path} is not an executable ELF file (e_type is {kind})")
    return elf_class == 2


def _program_headers(file: BootFile) -> tuple[ProgramHeader, ...]:
    is_64 = _check_identity(file)
    if is_64:
        header = file.read(0, 64, "the ELF header")
        phoff, phentsize, phnum = (
            *struct.unpack_from("<Q", header, 32),
            *struct.unpack_from("<HH", header, 54),
        )
    else:
        header = file.read(0, 52, "the ELF header")
        phoff, phentsize, phnum = (
            *struct.unpack_from("<I", header, 28),
            *struct.unpack_from("<HH", header, 42),
        )
    size = 56 if is_64 else 32
    if phentsize != size:
        raise CorruptImage(f"the kernel {file.path} is damaged: e_phentsize is {phentsize}, not {size}")
    if not 0 < phnum <= _SEGMENTS_MAXIMUM:
        raise CorruptImage(f"the kernel {file.path} is damaged: e_phnum is {phnum}")
    table = file.read(phoff, phnum * size, "the program header table")
    return tuple(_parse_header(table[i * size : (i + 1) * size], is_64) for i in range(phnum))


def _parse_header(raw: bytes, is_64: bool) -> ProgramHeader:
    if is_64:
        kind, _flags, offset, _vaddr, paddr, filesz, memsz, align = struct.unpack("<IIQQQQQQ", raw)
    else:
        kind, offset, _vaddr, paddr, filesz, memsz, _flags, align = struct.unpack("<IIIIIIII", raw)
    return ProgramHeader(kind, offset, paddr, filesz, memsz, align)


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


def _find_entry(file: BootFile, headers: tuple[ProgramHeader, ...]) -> int:
    for header in headers:
        if header.kind != _PT_NOTE:
            continue
        if header.filesz > _NOTES_MAXIMUM:
            raise CorruptImage(f"the kernel {file.path} is damaged: a note segment has {header.filesz} bytes")
        notes = file.read(header.offset, header.filesz, "a note segment")
        for name, kind, description in iter_notes(notes, header.align):
            if name.rstrip(b"\0") == b"Xen" and kind == _PHYS32_ENTRY and len(description) in (4, 8):
                return int.from_bytes(description, "little")
    raise UnsupportedImage(
        f"the kernel {file.path} is an ELF file without a PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY)",
        remedy="Give a bzImage (vmlinuz), or build the kernel with CONFIG_PVH.",
    )


def _check_segments(file: BootFile, segments: tuple[ProgramHeader, ...], layout: mm.MemoryMap) -> None:
    """Every segment within the file and within RAM, none over another."""
    end = 0
    for segment in segments:
        where = f"the segment at {segment.paddr:#x} (p_paddr)"
        if segment.filesz > segment.memsz:
            raise CorruptImage(f"the kernel {file.path} is damaged: {where} has p_filesz over p_memsz")
        if segment.offset + segment.filesz > file.size:
            raise CorruptImage(
                f"the kernel {file.path} is truncated: {where} ends at byte "
                f"{segment.offset + segment.filesz}, the file has {file.size}"
            )
        if segment.paddr < end:
            raise CorruptImage(f"the kernel {file.path} is damaged: {where} overlaps the one before it")
        if not layout.holds(segment.paddr, segment.memsz):
            raise UsageError(
                f"the kernel {file.path} does not fit: {where} of {segment.memsz} bytes "
                f"is not in the machine's {layout.ram_size // mm.MIB} MiB of memory",
                remedy="Give more --memory.",
            )
        end = segment.paddr + segment.memsz


def read_elf(file: BootFile, layout: mm.MemoryMap) -> ElfKernel:
    """Read and check the headers.

    Raises:
        CorruptImage: Truncated, overlapping segments, or a field cannot be right.
        UnsupportedImage: Of another machine, not executable, or without a PVH entry.
        UsageError: A segment lies outside the machine's RAM.
    """
    headers = _program_headers(file)
    loads = [header for header in headers if header.kind == _PT_LOAD and header.memsz]
    segments = tuple(sorted(loads, key=lambda header: header.paddr))
    if not segments:
        raise CorruptImage(f"the kernel {file.path} has nothing to load (no PT_LOAD segment)")
    entry = _find_entry(file, headers)
    _check_segments(file, segments, layout)
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
