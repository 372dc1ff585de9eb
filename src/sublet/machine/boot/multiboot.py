"""Loading a kernel with modules by the Multiboot specification, version 1 or 2.

Reference: Multiboot Specification 0.6.96 §3.2 "Machine state"; Multiboot2 Specification 2.0 §3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sublet.errors import CorruptImage, UnsupportedImage, UsageError
from sublet.hw import GuestMemory
from sublet.machine import memory_map as mm
from sublet.machine.boot.elf import ELF_MAGIC, check_segments, read_headers
from sublet.machine.boot.entry import BootState, protected_mode_entry
from sublet.machine.boot.files import BootFile, open_boot_file
from sublet.machine.boot.multiboot_header import LoadAddresses, MultibootHeader, place
from sublet.machine.boot.multiboot_info import (
    Information,
    Module,
    basic_memory,
    build_info_1,
    build_info_2,
)

_EAX: Final = {1: 0x2BADB002, 2: 0x36D76289}
_RSDP_SIZE: Final = 36


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """A module as the user gave it."""

    path: Path
    arguments: str = ""

    @property
    def text(self) -> bytes:
        """What the kernel is told: the file's name, not where it lies on the host, and the arguments."""
        return f"{self.path.name} {self.arguments}".strip().encode("utf-8", "surrogateescape")


def parse_module(text: str) -> ModuleFile:
    """Read ``FILE`` or ``FILE ARGUMENTS``; a file whose name has blanks is found if it is there.

    Raises:
        UsageError: There is no file's name, or a NUL.
    """
    if "\0" in text or not text.strip():
        raise UsageError(f"--module {text!r}: the file is missing")
    if Path(text).is_file():
        return ModuleFile(Path(text))
    file, _, arguments = text.strip().partition(" ")
    return ModuleFile(Path(file), arguments.strip())


def module_files(initrd: Path | None, modules: Sequence[str]) -> tuple[ModuleFile, ...]:
    """What the user gave as modules; an initrd is one more, the first."""
    files = tuple(parse_module(text) for text in modules)
    return files if initrd is None else (ModuleFile(initrd), *files)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file that go to an address, and zeroes after them."""

    path: Path
    what: str
    """What the file is, for messages."""
    offset: int
    """Of the bytes, in the file."""
    size: int
    gpa: int
    total: int
    """Bytes of memory, with the zeroes."""

    @property
    def end(self) -> int:
        """Where the zeroes end."""
        return self.gpa + self.total

    def read(self) -> bytes:
        """The bytes.

        Raises:
            SubletError: The file is not what it was.
        """
        with open_boot_file(self.path, self.what) as file:
            return file.read(self.offset, self.size, f"the {self.what}")

    def copy_to(self, memory: GuestMemory) -> None:
        """Copy the bytes into RAM that is zero; as `read`."""
        with open_boot_file(self.path, self.what) as file:
            file.copy_to(memory, self.gpa, self.offset, self.size, f"the {self.what}")


@dataclass(frozen=True, slots=True)
class MultibootPlan:
    """What is to be in memory when a kernel is entered, but for the information it is given."""

    version: int
    entry: int
    pieces: tuple[Piece, ...]
    """Of the kernel and of the modules, by address."""
    modules: tuple[Module, ...]
    words: bytes
    """The kernel's file name and its command line."""

    @property
    def magic(self) -> int:
        """What EAX holds at the entry."""
        return _EAX[self.version]


def plan_multiboot(
    file: BootFile,
    header: MultibootHeader,
    modules: tuple[ModuleFile, ...],
    cmdline: str,
    layout: mm.MemoryMap,
) -> MultibootPlan:
    """Decide where kernel and modules go; they are read when they are copied.

    Raises:
        ImageError: The kernel is damaged.
        UsageError: Something does not fit, or a module is missing.
        HostRefused: A file cannot be read.
    """
    if header.addresses is not None:
        pieces = [_piece_by_addresses(file, header, header.addresses, layout)]
        entry = header.entry
    else:
        pieces, entry = _elf_pieces(file, layout)
        entry = entry if header.entry is None else header.entry
    if entry is None:
        raise CorruptImage(f"the kernel {file.path} is damaged: it has no multiboot entry address")
    loaded = _module_pieces(modules, max(piece.end for piece in pieces), layout)
    known = tuple(
        Module(piece.gpa, piece.end, module.text) for piece, module in zip(loaded, modules, strict=True)
    )
    words = f"{file.path.name} {cmdline}".strip().encode("utf-8", "surrogateescape")
    return MultibootPlan(header.version, entry, (*pieces, *loaded), known, words)


def load_multiboot(
    plan: MultibootPlan, memory: GuestMemory, layout: mm.MemoryMap, rsdp_gpa: int
) -> BootState:
    """Load kernel, modules and information; returns how to enter the kernel. RAM must be zero.

    Raises:
        UsageError: What the kernel is told is too long.
        SubletError: A file is not what it was.
    """
    for piece in plan.pieces:
        piece.copy_to(memory)
    information = describe(plan, basic_memory(layout), layout.e820(), memory.read(rsdp_gpa, _RSDP_SIZE))
    memory.write(mm.BOOT_MULTIBOOT, information.data)
    return protected_mode_entry(memory, plan.entry, rax=plan.magic, rbx=mm.BOOT_MULTIBOOT)


def describe(
    plan: MultibootPlan,
    basic: tuple[int, int],
    entries: Sequence[mm.E820Entry],
    rsdp: bytes,
    gpa: int = mm.BOOT_MULTIBOOT,
) -> Information:
    """What the kernel is told at ``gpa``.

    Raises:
        UsageError: It is too long for its place.
    """
    if plan.version == 1:
        information = build_info_1(gpa, plan.words, plan.modules, basic, entries)
    else:
        information = build_info_2(plan.words, plan.modules, basic, entries, rsdp)
    if len(information.data) > mm.BOOT_MULTIBOOT_SIZE or b"\0" in plan.words:
        raise UsageError("the command line and the modules' arguments are too long, or contain a NUL byte")
    return information


def _piece_by_addresses(
    file: BootFile, header: MultibootHeader, addresses: LoadAddresses, layout: mm.MemoryMap
) -> Piece:
    """A kernel of any format where its header says."""
    offset, gpa, size, total = place(file, header, addresses)
    if not layout.holds(gpa, total):
        raise _does_not_fit(file, gpa, total, layout)
    return Piece(file.path, "kernel", offset, size, gpa, total)


def _does_not_fit(file: BootFile, gpa: int, size: int, layout: mm.MemoryMap) -> UsageError:
    return UsageError(
        f"the kernel {file.path} does not fit: its {size} bytes at {gpa:#x} (load_addr) "
        f"are not in the machine's {layout.ram_size // mm.MIB} MiB of memory above 1 MiB",
        remedy="Give more --memory.",
    )


def _elf_pieces(file: BootFile, layout: mm.MemoryMap) -> tuple[list[Piece], int]:
    """The segments, and the entry as a physical address."""
    if file.read(0, 4, "the ELF identification") != ELF_MAGIC:
        raise UnsupportedImage(
            f"the kernel {file.path} is no ELF file, and its multiboot header has no addresses (flags bit 16)"
        )
    elf = read_headers(file)
    segments = elf.segments()
    if not segments:
        raise CorruptImage(f"the kernel {file.path} has nothing to load (no PT_LOAD segment)")
    check_segments(file, segments, layout)
    pieces = [
        Piece(file.path, "kernel", segment.offset, segment.filesz, segment.paddr, segment.memsz)
        for segment in segments
    ]
    entries = [
        elf.entry - segment.vaddr + segment.paddr
        for segment in segments
        if segment.vaddr <= elf.entry < segment.vaddr + segment.memsz
    ]
    if not entries:
        raise CorruptImage(f"the kernel {file.path} is damaged: its entry {elf.entry:#x} is in no segment")
    return pieces, entries[0]


def _module_pieces(modules: tuple[ModuleFile, ...], gpa: int, layout: mm.MemoryMap) -> list[Piece]:
    """The modules behind the kernel, each in pages of its own."""
    pieces: list[Piece] = []
    for module in modules:
        with open_boot_file(module.path, "module") as file:
            start = -(-gpa // mm.PAGE_SIZE) * mm.PAGE_SIZE
            gpa = start + file.size
            if gpa > layout.low_ram_end:
                raise UsageError(
                    f"the module {module.path} ({file.size / mm.MIB:.1f} MiB) does not fit behind the kernel "
                    f"in {layout.ram_size // mm.MIB} MiB of memory",
                    remedy="Give more --memory.",
                )
            pieces.append(Piece(module.path, "module", 0, file.size, start, file.size))
    return pieces
