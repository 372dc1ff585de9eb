"""Reading the headers of an ELF file.

Reference: System V ABI gABI 4.1 "Object Files".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from sublet.errors import CorruptImage, UnsupportedImage, UsageError
from sublet.machine import memory_map as mm
from sublet.machine.boot.files import BootFile

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
PT_LOAD: Final = 1
_SEGMENTS_MAXIMUM: Final = 128


@dataclass(frozen=True, slots=True)
class ProgramHeader:
    """One program header, both classes of ELF alike."""

    kind: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


@dataclass(frozen=True, slots=True)
class ElfFile:
    """The headers of an executable for x86."""

    is_64: bool
    entry: int
    """e_entry: a virtual address."""
    headers: tuple[ProgramHeader, ...]

    def segments(self) -> tuple[ProgramHeader, ...]:
        """What is to be loaded, by physical address."""
        loads = [header for header in self.headers if header.kind == PT_LOAD and header.memsz]
        return tuple(sorted(loads, key=lambda header: header.paddr))


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


def read_headers(file: BootFile) -> ElfFile:
    """Read and check the headers.

    Raises:
        CorruptImage: Truncated, or a field cannot be right.
        UnsupportedImage: Of another machine, or not executable.
    """
    is_64 = _check_identity(file)
    if is_64:
        header = file.read(0, 64, "the ELF header")
        entry, phoff, phentsize, phnum = (
            *struct.unpack_from("<QQ", header, 24),
            *struct.unpack_from("<HH", header, 54),
        )
    else:
        header = file.read(0, 52, "the ELF header")
        entry, phoff, phentsize, phnum = (
            *struct.unpack_from("<II", header, 24),
            *struct.unpack_from("<HH", header, 42),
        )
    size = 56 if is_64 else 32
    if phentsize != size:
        raise CorruptImage(f"the kernel {file.path} is damaged: e_phentsize is {phentsize}, not {size}")
    if not 0 < phnum <= _SEGMENTS_MAXIMUM:
        raise CorruptImage(f"the kernel {file.path} is damaged: e_phnum is {phnum}")
    table = file.read(phoff, phnum * size, "the program header table")
    headers = tuple(_parse_header(table[i * size : (i + 1) * size], is_64) for i in range(phnum))
    return ElfFile(is_64, entry, headers)


def _parse_header(raw: bytes, is_64: bool) -> ProgramHeader:
    if is_64:
        kind, _flags, offset, vaddr, paddr, filesz, memsz, align = struct.unpack("<IIQQQQQQ", raw)
    else:
        kind, offset, vaddr, paddr, filesz, memsz, _flags, align = struct.unpack("<IIIIIIII", raw)
    return ProgramHeader(kind, offset, vaddr, paddr, filesz, memsz, align)


def check_segments(file: BootFile, segments: tuple[ProgramHeader, ...], layout: mm.MemoryMap) -> None:
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
