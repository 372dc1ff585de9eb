"""Putting a kernel into a machine's RAM, whatever its format."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sublet.errors import CorruptImage, UnsupportedImage
from sublet.hw import GuestMemory
from sublet.machine.boot.entry import BootState
from sublet.machine.boot.files import BootFile, open_boot_file
from sublet.machine.boot.linux import is_bzimage, load_bzimage
from sublet.machine.boot.pvh import ELF_MAGIC, load_elf
from sublet.machine.memory_map import MemoryMap

__all__ = ["BootState", "check_files", "load_kernel"]

_PROBE: Final = 0x210
_KNOWN: Final = (
    (0x38, b"ARM\x64", "an AArch64 Linux image"),
    (0x30, b"RISCV", "a RISC-V Linux image"),
    (0, b"\x1f\x8b", "a gzip file: give the kernel itself"),
    (0, b"\xfd7zXZ", "an xz file: give the kernel itself"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file: give the kernel itself"),
    (0, b"!<arch>", "an archive: give the kernel inside it"),
)


def check_files(kernel: Path, initrd: Path | None) -> None:
    """See that the files are there and of a known kind, before an engine is opened for them.

    Raises:
        ImageError: The kernel is neither bzImage nor ELF.
        UsageError: A file is missing.
        HostRefused: A file cannot be read.
    """
    with open_boot_file(kernel, "kernel") as file:
        _read_start(file)
    if initrd is not None:
        with open_boot_file(initrd, "initrd"):
            pass


def load_kernel(
    kernel: Path,
    initrd: Path | None,
    cmdline: str,
    memory: GuestMemory,
    layout: MemoryMap,
    rsdp_gpa: int,
) -> BootState:
    """Load a bzImage or a PVH ELF, told apart by magic, into zeroed RAM.

    Raises:
        ImageError: The kernel is damaged or of a kind that we do not boot.
        UsageError: A file is missing, or does not fit into memory.
        HostRefused: A file cannot be read.
    """
    with open_boot_file(kernel, "kernel") as file:
        load = load_elf if _read_start(file).startswith(ELF_MAGIC) else load_bzimage
        return load(file, initrd, cmdline, memory, layout, rsdp_gpa)


def _read_start(file: BootFile) -> bytes:
    """The first bytes of an ELF or a bzImage; anything else raises."""
    start = file.read(0, min(_PROBE, file.size), "the header")
    if start.startswith(ELF_MAGIC) or is_bzimage(start):
        return start
    raise _unknown(file, start)


def _unknown(file: BootFile, start: bytes) -> CorruptImage | UnsupportedImage:
    if file.size < _PROBE:
        return CorruptImage(
            f"the kernel {file.path} is truncated: it has {file.size} bytes, too few for a header"
        )
    for offset, magic, name in _KNOWN:
        if start[offset:].startswith(magic):
            return UnsupportedImage(f"the kernel {file.path} is {name}")
    return UnsupportedImage(
        f"the kernel {file.path} is neither a Linux bzImage nor an ELF file",
        remedy="Give a kernel such as /boot/vmlinuz-*.",
    )
