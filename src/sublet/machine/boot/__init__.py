"""Putting a kernel into a machine's RAM, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sublet.errors import CorruptImage, UnsupportedImage, UsageError
from sublet.hw import GuestMemory
from sublet.machine.boot.elf import ELF_MAGIC
from sublet.machine.boot.entry import BootState
from sublet.machine.boot.files import BootFile, open_boot_file
from sublet.machine.boot.linux import is_bzimage, load_bzimage
from sublet.machine.boot.multiboot import load_multiboot, module_files, parse_module, plan_multiboot
from sublet.machine.boot.multiboot_header import MultibootHeader, find_header
from sublet.machine.boot.pvh import has_pvh_entry, load_elf
from sublet.machine.memory_map import MemoryMap

__all__ = ["BootState", "check_files", "load_kernel"]

_PROBE: Final = 0x210
_KNOWN: Final = (
    (0x38, b"ARM\x64", "an AArch64 Linux image"),
    (0x30, b"RISCV", "a RISC-V Linux image"),
    (0, b"\x1f\x8b", "a gzip file: unpack it with gzip -d"),
    (0, b"\xfd7zXZ", "an xz file: unpack it with xz -d"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file: unpack it with zstd -d"),
    (0, b"!<arch>", "an archive: give the kernel inside it"),
)


def check_files(kernel: Path, initrd: Path | None, modules: Sequence[str] = ()) -> None:
    """See that the files are there and of a known kind, before an engine is opened for them.

    Raises:
        ImageError: The kernel is of no kind that is known, or takes no modules.
        UsageError: A file is missing.
        HostRefused: A file cannot be read.
    """
    with open_boot_file(kernel, "kernel") as file:
        _choose(file, modules=bool(modules))
    if initrd is not None:
        with open_boot_file(initrd, "initrd"):
            pass
    for text in modules:
        with open_boot_file(parse_module(text).path, "module"):
            pass


def load_kernel(
    kernel: Path,
    initrd: Path | None,
    cmdline: str,
    memory: GuestMemory,
    layout: MemoryMap,
    rsdp_gpa: int,
    modules: Sequence[str] = (),
) -> BootState:
    """Load a bzImage, a PVH ELF or a Multiboot kernel, told apart by magic, into zeroed RAM.

    Args:
        modules: For a Multiboot kernel: ``FILE ARGUMENTS``. An initrd is one more module to it, the first.

    Raises:
        ImageError: The kernel is damaged or of a kind that we do not boot.
        UsageError: A file is missing, or does not fit into memory.
        HostRefused: A file cannot be read.
    """
    with open_boot_file(kernel, "kernel") as file:
        header = _choose(file, modules=bool(modules))
        if header is not None:
            plan = plan_multiboot(file, header, module_files(initrd, modules), cmdline, layout)
            return load_multiboot(plan, memory, layout, rsdp_gpa)
        load = load_elf if file.read(0, 4, "the header") == ELF_MAGIC else load_bzimage
        return load(file, initrd, cmdline, memory, layout, rsdp_gpa)


def _choose(file: BootFile, *, modules: bool) -> MultibootHeader | None:
    """The Multiboot header, where the kernel is to be loaded by it; None: it is a bzImage or a PVH ELF.

    A kernel that can be entered in several ways is a Linux bzImage first, then PVH, then Multiboot; with
    modules, which only Multiboot has, it must be that.
    """
    start = file.read(0, min(_PROBE, file.size), "the header")
    linux, elf = is_bzimage(start), start.startswith(ELF_MAGIC)
    header = None if linux else find_header(file)
    if modules and header is None and (linux or elf):
        raise UsageError(
            f"the kernel {file.path} has no multiboot header, so it takes no modules",
            remedy="Leave --module out; a Linux kernel takes --initrd.",
        )
    if header is None and not linux and not elf:
        raise _unknown(file, start)
    if header is not None and elf and not modules and has_pvh_entry(file):
        return None
    return header


def _unknown(file: BootFile, start: bytes) -> CorruptImage | UnsupportedImage:
    if file.size < _PROBE:
        return CorruptImage(
            f"the kernel {file.path} is truncated: it has {file.size} bytes, too few for a header"
        )
    for offset, magic, name in _KNOWN:
        if start[offset:].startswith(magic):
            return UnsupportedImage(f"the kernel {file.path} is {name}")
    return UnsupportedImage(
        f"the kernel {file.path} is neither a Linux bzImage nor an ELF file, and has no multiboot header",
        remedy="Give a kernel such as /boot/vmlinuz-*.",
    )
