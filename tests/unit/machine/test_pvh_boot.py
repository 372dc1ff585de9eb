"""ELF loading by the PVH entry: what reaches memory, and every way an image can be wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.unit.machine.images import Elf

from sublet.errors import CorruptImage, SubletError, UnsupportedImage, UsageError
from sublet.machine import memory_map as mm
from sublet.machine.boot import BootState, load_kernel
from sublet.machine.boot.pvh import iter_notes
from sublet.testing.fake_engine import FakeVmMemory

RSDP = 0xE0000


def load(tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap, image: bytes) -> BootState:
    kernel, initrd = tmp_path / "vmlinux", tmp_path / "initrd"
    kernel.write_bytes(image)
    initrd.write_bytes(b"i" * 5000)
    return load_kernel(kernel, initrd, "console=ttyS0", memory, layout, RSDP)


@pytest.mark.parametrize("is_64", [True, False], ids=["ELF64", "ELF32"])
def test_segments_are_loaded_and_entered_in_protected_mode(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap, is_64: bool
) -> None:
    segments = [(0x20_0000, b"second", 6), (0x10_0000, b"first", 4096)]
    state = load(tmp_path, memory, layout, Elf(is_64=is_64, segments=segments, entry=0x10_0010).build())
    assert memory.read(0x10_0000, 5) == b"first"
    assert memory.read(0x20_0000, 6) == b"second"
    assert state.regs["rip"] == 0x10_0010
    assert state.regs["rbx"] == mm.BOOT_START_INFO
    assert state.sregs["cs"] == (0x10, 0, 0xFFFF_FFFF, 0xC09B)
    assert state.sregs["cr0"] == 0x11
    assert (state.sregs["cr4"], state.sregs["efer"]) == (0, 0)


def test_start_info_tells_the_kernel_what_it_needs(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap
) -> None:
    load(tmp_path, memory, layout, Elf().build())
    info = struct.unpack("<IIIIQQQQII", memory.read(mm.BOOT_START_INFO, 56))
    magic, version, _flags, modules, modlist, cmdline, rsdp, memmap, entries, _reserved = info
    assert (magic, version, modules, rsdp) == (0x336EC578, 1, 1, RSDP)
    assert memory.read(cmdline, 14) == b"console=ttyS0\0"
    gpa, size = struct.unpack("<QQ", memory.read(modlist, 16))
    assert memory.read(gpa, size) == b"i" * 5000
    assert entries == len(layout.e820())
    assert struct.unpack("<QQI", memory.read(memmap, 20)) == (0, mm.EBDA_BASE, mm.E820_RAM)


GOOD = Elf().build()
BAD_IMAGES: dict[str, tuple[bytes, type[SubletError], str]] = {
    "AArch64": (Elf(machine=183).build(), UnsupportedImage, "AArch64"),
    "unknown machine": (Elf(machine=9999).build(), UnsupportedImage, "machine 9999"),
    "object file": (Elf(kind=1).build(), UnsupportedImage, "e_type is 1"),
    "no note": (Elf(entry=None).build(), UnsupportedImage, "PHYS32_ENTRY"),
    "class": (GOOD[:4] + b"\x07" + GOOD[5:], CorruptImage, "EI_CLASS"),
    "identification": (GOOD[:10], CorruptImage, "truncated"),
    "header": (GOOD[:30], CorruptImage, "the ELF header"),
    "program headers": (GOOD[:80], CorruptImage, "the program header table"),
    "nothing to load": (Elf(segments=[]).build(), CorruptImage, "PT_LOAD"),
    "entry outside": (Elf(entry=0x50_0000).build(), CorruptImage, "0x500000"),
    "outside RAM": (Elf(segments=[(1 << 30, b"x", 1)]).build(), UsageError, "64 MiB"),
    "wraps": (Elf(segments=[((1 << 64) - 1, b"x", 1 << 63)]).build(), UsageError, "64 MiB"),
    "below 1 MiB": (Elf(segments=[(0x7000, b"x", 1)]).build(), UsageError, "0x7000"),
    "memsz": (Elf(segments=[(0x10_0000, b"xyz", 1)]).build(), CorruptImage, "p_filesz"),
    "overlap": (
        Elf(segments=[(0x10_0000, b"x", 4096), (0x10_0800, b"x", 1)]).build(),
        CorruptImage,
        "overlaps",
    ),
    "e_phentsize": (GOOD[:54] + b"\x01\x00" + GOOD[56:], CorruptImage, "e_phentsize"),
    "e_phnum 0": (GOOD[:56] + b"\x00\x00" + GOOD[58:], CorruptImage, "e_phnum"),
    "e_phnum 65535": (GOOD[:56] + b"\xff\xff" + GOOD[58:], CorruptImage, "e_phnum"),
    "e_phoff": (GOOD[:32] + b"\xff" * 8 + GOOD[40:], CorruptImage, "truncated"),
    "segment in file": (GOOD[:72] + b"\xff" * 7 + b"\0" + GOOD[80:], CorruptImage, "truncated"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_name_the_file_and_the_field(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap, name: str
) -> None:
    image, error, text = BAD_IMAGES[name]
    with pytest.raises(error, match=r".*vmlinux.*") as caught:
        load(tmp_path, memory, layout, image)
    assert text in caught.value.message


@pytest.mark.parametrize("align", [4, 8])
def test_notes_are_found_behind_others(align: int) -> None:
    def note(name: bytes, kind: int, description: bytes) -> bytes:
        data = struct.pack("<III", len(name), len(description), kind) + name
        data += bytes(-len(data) % align) + description
        return data + bytes(-len(data) % align)

    data = note(b"GNU\0", 3, b"x" * 5) + note(b"Xen\0", 18, b"\x00\x00\x10\x00")
    assert list(iter_notes(data, align)) == [(b"GNU\0", 3, b"x" * 5), (b"Xen\0", 18, b"\x00\x00\x10\x00")]


@pytest.mark.parametrize("data", [b"", b"\xff" * 12, b"\xff" * 100, bytes(64)])
def test_damaged_notes_end_the_search(data: bytes) -> None:
    assert all(not name for name, _kind, _description in iter_notes(data, 4))
