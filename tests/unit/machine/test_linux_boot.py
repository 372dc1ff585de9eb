"""bzImage loading: what reaches memory, and every way an image can be wrong."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest
from tests.unit.machine.images import Bzimage

from sublet.errors import CorruptImage, SubletError, UnsupportedImage, UsageError
from sublet.machine import memory_map as mm
from sublet.machine.boot import BootState, load_kernel
from sublet.testing.fake_engine import FakeVmMemory

RSDP = 0xE0000


def load(
    tmp_path: Path,
    memory: FakeVmMemory,
    layout: mm.MemoryMap,
    image: bytes,
    initrd: bytes | None = None,
    cmdline: str = "quiet",
) -> BootState:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(image)
    initrd_path = None
    if initrd is not None:
        initrd_path = tmp_path / "initrd"
        initrd_path.write_bytes(initrd)
    return load_kernel(kernel, initrd_path, cmdline, memory, layout, RSDP)


def test_kernel_goes_to_its_preferred_address(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap
) -> None:
    state = load(tmp_path, memory, layout, Bzimage(payload=b"kernel.." * 8).build())
    assert memory.read(0x100_0000, 64) == b"kernel.." * 8
    assert state.regs["rip"] == 0x100_0200
    assert state.regs["rsi"] == mm.BOOT_ZERO_PAGE
    assert state.regs["rflags"] == 2


def test_a_kernel_may_end_inside_its_last_paragraph(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap
) -> None:
    load(tmp_path, memory, layout, Bzimage(payload=b"kernel.." * 8).build()[:-15])
    assert memory.read(0x100_0000, 64) == (b"kernel.." * 8)[:49] + bytes(15)


def test_entry_state_is_long_mode_with_identity_paging(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap
) -> None:
    state = load(tmp_path, memory, layout, Bzimage().build())
    sregs = state.sregs
    assert sregs["cs"] == (0x10, 0, 0xFFFF_FFFF, 0xA09B)
    assert sregs["ds"] == (0x18, 0, 0xFFFF_FFFF, 0xC093)
    assert sregs["efer"] == 0x500
    assert sregs["cr4"] == 0x20
    assert dict(state.msrs)[0x2FF] == 0x806, "MTRRs on, write-back"
    pml4 = sregs["cr3"]
    assert isinstance(pml4, int)
    for gpa in (0, 0x100_0000, 0xC000_0000, 0xFFFF_F000):
        assert _walk(memory, pml4, gpa) == gpa


def _walk(memory: FakeVmMemory, table: int, gva: int) -> int:
    for shift in (39, 30):
        table = memory.read_u64(table + 8 * (gva >> shift & 0x1FF)) & ~0xFFF
    entry = memory.read_u64(table + 8 * (gva >> 21 & 0x1FF))
    assert entry & 0x83 == 0x83
    return (entry & ~0x1F_FFFF) | gva & 0x1F_FFFF


def test_zero_page_tells_the_kernel_what_it_needs(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap
) -> None:
    load(tmp_path, memory, layout, Bzimage().build(), initrd=b"i" * 5000)
    page = memory.read(mm.BOOT_ZERO_PAGE, 4096)
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF
    assert struct.unpack_from("<Q", page, 0x070) == (RSDP,)
    assert struct.unpack_from("<I", page, 0x228) == (mm.BOOT_CMDLINE,)
    assert memory.read(mm.BOOT_CMDLINE, 6) == b"quiet\0"
    gpa, size = struct.unpack_from("<II", page, 0x218)
    assert memory.read(gpa, size) == b"i" * 5000
    assert gpa % 4096 == 0
    assert page[0x1E8] == len(layout.e820())
    assert struct.unpack_from("<QQI", page, 0x2D0) == (0, mm.EBDA_BASE, mm.E820_RAM)


def test_random_seed_is_handed_over(tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap) -> None:
    load(tmp_path, memory, layout, Bzimage().build())
    (address,) = struct.unpack("<Q", memory.read(mm.BOOT_ZERO_PAGE + 0x250, 8))
    assert struct.unpack("<QII", memory.read(address, 16)) == (0, 9, 32)
    assert memory.read(address + 16, 32) != bytes(32)


def test_relocatable_kernel_moves_down_when_memory_is_short(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap
) -> None:
    state = load(tmp_path, memory, layout, Bzimage(init_size=56 * mm.MIB).build())
    assert state.regs["rip"] == 0x20_0200


def test_initrd_stays_below_the_kernels_limit(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap
) -> None:
    load(tmp_path, memory, layout, Bzimage(initrd_addr_max=0x1FF_FFFF).build(), initrd=b"i" * 4096)
    assert struct.unpack("<I", memory.read(mm.BOOT_ZERO_PAGE + 0x218, 4)) == (0x1FF_F000,)


def test_initrd_goes_below_the_kernel_when_only_that_is_free(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap
) -> None:
    image = Bzimage(pref_address=0x200_0000, init_size=31 * mm.MIB + 0xF_F000)
    load(tmp_path, memory, layout, image.build(), initrd=b"i" * 8192)
    assert struct.unpack("<I", memory.read(mm.BOOT_ZERO_PAGE + 0x218, 4)) == (0x1FF_E000,)


def test_a_32_bit_kernel_is_entered_in_protected_mode(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap
) -> None:
    state = load(tmp_path, memory, layout, Bzimage(xloadflags=0).build())
    assert state.regs["rip"] == 0x100_0000
    assert state.regs["rsi"] == mm.BOOT_ZERO_PAGE
    assert {"rbp", "rdi", "rbx"}.isdisjoint(state.regs)
    assert state.sregs["cs"] == (0x10, 0, 0xFFFF_FFFF, 0xC09B)
    assert state.sregs["ds"] == (0x18, 0, 0xFFFF_FFFF, 0xC093)
    assert state.sregs["cr0"] == 0x11


@pytest.mark.parametrize("version", [0x0202, 0x0204, 0x0209])
def test_fields_that_an_old_protocol_lacks_are_not_read(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap, version: int
) -> None:
    image = Bzimage(version=version, pref_address=0x666_0000, init_size=1, xloadflags=0xFFFF)
    state = load(tmp_path, memory, layout, image.build(), initrd=b"i" * 100)
    assert state.regs["rip"] == 0x10_0000
    assert memory.read(mm.BOOT_ZERO_PAGE + 0x250, 8) == bytes(8) or version >= 0x0209


def test_a_kernel_that_stays_where_it_is_needs_no_alignment(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap
) -> None:
    state = load(tmp_path, memory, layout, Bzimage(relocatable=0, alignment=0).build())
    assert state.regs["rip"] == 0x100_0200


BAD_IMAGES: dict[str, tuple[bytes, type[SubletError], str]] = {
    "empty": (b"", CorruptImage, "truncated: it has 0 bytes"),
    "short": (Bzimage().build()[:0x100], CorruptImage, "truncated"),
    "setup only": (Bzimage().build()[:0x210], CorruptImage, "the setup header"),
    "truncated kernel": (Bzimage(payload=bytes(4096)).build()[:-16], CorruptImage, "syssize"),
    "old protocol": (Bzimage(version=0x0201).build(), UnsupportedImage, "boot protocol 2.01"),
    "zImage": (Bzimage(loadflags=0).build(), UnsupportedImage, "loadflags"),
    "odd alignment": (Bzimage(alignment=3).build(), CorruptImage, "kernel_alignment"),
    "no alignment": (Bzimage(alignment=0).build(), CorruptImage, "kernel_alignment"),
    "small init_size": (Bzimage(init_size=8).build(), CorruptImage, "init_size"),
    "huge init_size": (Bzimage(init_size=0xFFFF_FFFF).build(), UsageError, "64 MiB of memory"),
    "high address": (Bzimage(pref_address=1 << 63, relocatable=0).build(), UsageError, "64 MiB"),
    "low address": (Bzimage(pref_address=0, relocatable=0).build(), UsageError, "64 MiB"),
    "text": (b"#!/bin/sh\n" * 100, UnsupportedImage, "neither"),
    "gzip": (b"\x1f\x8b" + bytes(1000), UnsupportedImage, "gzip"),
    "AArch64": (bytes(0x38) + b"ARM\x64" + bytes(1000), UnsupportedImage, "AArch64"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_name_the_file_and_the_field(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap, name: str
) -> None:
    image, error, text = BAD_IMAGES[name]
    with pytest.raises(error, match=r".*vmlinuz.*") as caught:
        load(tmp_path, memory, layout, image)
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"initrd": bytes(65 * mm.MIB)}, "64 MiB of memory"),
        ({"cmdline": "x" * 3000}, "3000 bytes"),
        ({"cmdline": "a\0b"}, "NUL"),
    ],
    ids=["initrd too large", "command line too long", "NUL"],
)
def test_what_does_not_fit_is_a_usage_error(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap, arguments: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        load(tmp_path, memory, layout, Bzimage().build(), **arguments)


@pytest.mark.parametrize("missing", ["kernel", "initrd"])
def test_missing_files_are_usage_errors(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap, missing: str
) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(Bzimage().build())
    paths = {"kernel": kernel, "initrd": None, missing: tmp_path / "nowhere"}
    with pytest.raises(UsageError, match=f"no {missing} at .*nowhere"):
        load_kernel(paths["kernel"] or kernel, paths["initrd"], "", memory, layout, RSDP)


def test_directories_and_fifos_are_refused_without_reading(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, fifo, Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a regular file"):
            load_kernel(path, None, "", memory, layout, RSDP)
