"""Loading a kernel with modules by the Multiboot specification, version 1 or 2.

Reference: Multiboot Specification 0.6.96 §3.2 "Machine state"; Multiboot2 Specification 2.0 §3.3.
"""

from __future__ import annotations

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
from sublet.machine.boot.multiboot_info import Module, build_info_1, build_info_2

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


def load_multiboot(
    file: BootFile,
    header: MultibootHeader,
    modules: tuple[ModuleFile, ...],
    cmdline: str,
    memory: GuestMemory,
    layout: mm.MemoryMap,
    rsdp_gpa: int,
) -> BootState:
    """Load kernel, modules and information; returns how to enter the kernel. RAM must be zero.

    Raises:
        ImageError: The kernel is damaged.
        UsageError: Something does not fit, or a module is missing.
        HostRefused: A file cannot be read.
    """
    if header.addresses is not None:
        end = _load_by_addresses(file, header, header.addresses, memory, layout)
        entry = header.entry
    else:
        end, entry = _load_elf(file, memory, layout)
        entry = entry if header.entry is None else header.entry
    if entry is None:
        raise CorruptImage(f"the kernel {file.path} is damaged: it has no multiboot entry address")
    loaded = _load_modules(modules, end, memory, layout)
    words = f"{file.path.name} {cmdline}".strip().encode("utf-8", "surrogateescape")
    if header.version == 1:
        info = build_info_1(mm.BOOT_MULTIBOOT, words, loaded, layout)
    else:
        info = build_info_2(words, loaded, layout, memory.read(rsdp_gpa, _RSDP_SIZE))
    if len(info) > mm.BOOT_MULTIBOOT_SIZE or b"\0" in words:
        raise UsageError("the command line and the modules' arguments are too long, or contain a NUL byte")
    memory.write(mm.BOOT_MULTIBOOT, info)
    return protected_mode_entry(memory, entry, rax=_EAX[header.version], rbx=mm.BOOT_MULTIBOOT)


def _load_by_addresses(
    file: BootFile,
    header: MultibootHeader,
    addresses: LoadAddresses,
    memory: GuestMemory,
    layout: mm.MemoryMap,
) -> int:
    """Load a kernel of any format where its header says; returns its end."""
    offset, gpa, size, total = place(file, header, addresses)
    if not layout.holds(gpa, total):
        raise _does_not_fit(file, gpa, total, layout)
    file.copy_to(memory, gpa, offset, size, "the kernel (load_end_addr)")
    return gpa + total


def _does_not_fit(file: BootFile, gpa: int, size: int, layout: mm.MemoryMap) -> UsageError:
    return UsageError(
        f"the kernel {file.path} does not fit: its {size} bytes at {gpa:#x} (load_addr) "
        f"are not in the machine's {layout.ram_size // mm.MIB} MiB of memory above 1 MiB",
        remedy="Give more --memory.",
    )


def _load_elf(file: BootFile, memory: GuestMemory, layout: mm.MemoryMap) -> tuple[int, int]:
    """Load the segments; returns their end, and the entry as a physical address."""
    if file.read(0, 4, "the ELF identification") != ELF_MAGIC:
        raise UnsupportedImage(
            f"the kernel {file.path} is no ELF file, and its multiboot header has no addresses (flags bit 16)"
        )
    elf = read_headers(file)
    segments = elf.segments()
    if not segments:
        raise CorruptImage(f"the kernel {file.path} has nothing to load (no PT_LOAD segment)")
    check_segments(file, segments, layout)
    for segment in segments:
        file.copy_to(memory, segment.paddr, segment.offset, segment.filesz, "a segment")
    entries = [
        elf.entry - segment.vaddr + segment.paddr
        for segment in segments
        if segment.vaddr <= elf.entry < segment.vaddr + segment.memsz
    ]
    if not entries:
        raise CorruptImage(f"the kernel {file.path} is damaged: its entry {elf.entry:#x} is in no segment")
    return max(segment.paddr + segment.memsz for segment in segments), entries[0]


def _load_modules(
    modules: tuple[ModuleFile, ...], gpa: int, memory: GuestMemory, layout: mm.MemoryMap
) -> list[Module]:
    """Copy the modules behind the kernel, each to a page of its own."""
    loaded: list[Module] = []
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
            file.copy_to(memory, start, 0, file.size, "the module")
        loaded.append(Module(start, gpa, module.text))
    return loaded
