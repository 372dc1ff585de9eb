"""Multiboot kernels: headers of both versions, where they are loaded, what they are told."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.unit.machine.images import Bzimage, Elf

from sublet.errors import CorruptImage, SubletError, UnsupportedImage, UsageError
from sublet.machine import memory_map as mm
from sublet.machine.boot import BootState, check_files, load_kernel
from sublet.machine.boot.multiboot import parse_module
from sublet.testing.fake_engine import FakeVmMemory

LOAD = 0x20_0000


def header_1(flags: int, addresses: tuple[int, ...] = ()) -> bytes:
    """A header of version 1, its checksum right."""
    fields = struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFF_FFFF)
    return fields + struct.pack(f"<{len(addresses)}I", *addresses)


def tag(kind: int, body: bytes, flags: int = 0) -> bytes:
    raw = struct.pack("<HHI", kind, flags, 8 + len(body)) + body
    return raw + bytes(-len(raw) % 8)


def header_2(*tags: bytes, architecture: int = 0) -> bytes:
    """A header of version 2, its end tag added."""
    body = b"".join(tags) + tag(0, b"")
    length = 16 + len(body)
    checksum = -(0xE85250D6 + architecture + length) & 0xFFFF_FFFF
    return struct.pack("<IIII", 0xE85250D6, architecture, length, checksum) + body


def flat_1(code: bytes = b"\xf4" * 64, bss: int = 0x1000) -> bytes:
    """A kernel that is no ELF file: its header, then its code."""
    size = 32 + len(code)
    bss_end = LOAD + size + bss
    return header_1(0x10003, (LOAD, LOAD, LOAD + size, bss_end, LOAD + 32)) + code


def boot(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap, image: bytes, modules: tuple[str, ...] = ()
) -> BootState:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(image)
    memory.write(mm.ACPI_BASE, b"RSD PTR " + bytes(7) + b"\x02" + bytes(20))
    return load_kernel(kernel, None, "verbose", memory, layout, mm.ACPI_BASE, modules)


def text_at(memory: FakeVmMemory, gpa: int) -> bytes:
    return memory.read(gpa, 256).split(b"\0")[0]


def tags_of(memory: FakeVmMemory, gpa: int) -> list[tuple[int, bytes]]:
    """The tags of version 2's information."""
    total, reserved = struct.unpack("<II", memory.read(gpa, 8))
    assert reserved == 0
    found, offset = [], 8
    while offset < total:
        kind, size = struct.unpack("<II", memory.read(gpa + offset, 8))
        found.append((kind, memory.read(gpa + offset + 8, size - 8)))
        offset += size + 7 & ~7
    assert offset == total
    return found


def test_version_1_by_addresses(tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap) -> None:
    (tmp_path / "data").write_bytes(b"first module")
    (tmp_path / "more").write_bytes(b"second")
    modules = (f"{tmp_path}/data one two", f"{tmp_path}/more")
    state = boot(tmp_path, memory, layout, flat_1(), modules)
    assert state.regs["rip"] == LOAD + 32
    assert state.regs["rax"] == 0x2BADB002
    assert state.sregs["cr0"] == 0x11
    assert memory.read(LOAD + 32, 4) == b"\xf4" * 4
    info = memory.read(state.regs["rbx"], 72)
    flags, low, high, _, cmdline, count, rows = struct.unpack_from("<7I", info)
    assert flags & 0x4D == 0x4D
    assert (low, high) == (639, 63 * 1024)
    assert text_at(memory, cmdline) == b"kernel verbose"
    assert count == 2
    start, end, text, _ = struct.unpack("<IIII", memory.read(rows, 16))
    assert start % 4096 == 0
    assert start >= LOAD + 96 + 0x1000
    assert memory.read(start, end - start) == b"first module"
    assert text_at(memory, text) == b"data one two"
    length, table = struct.unpack_from("<II", info, 44)
    assert length == 24 * len(layout.e820())
    assert struct.unpack("<IQQI", memory.read(table, 24)) == (20, 0, mm.EBDA_BASE, 1)


def test_version_2_by_tags(tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap) -> None:
    (tmp_path / "data").write_bytes(b"module")
    addresses = tag(2, struct.pack("<IIII", LOAD, LOAD, 0, 0))
    header = header_2(tag(1, struct.pack("<I", 6)), addresses, tag(3, struct.pack("<I", LOAD + 64)))
    state = boot(tmp_path, memory, layout, header.ljust(256, b"\x90"), (f"{tmp_path}/data x",))
    assert state.regs["rip"] == LOAD + 64
    assert state.regs["rax"] == 0x36D76289
    tags = dict(tags_of(memory, state.regs["rbx"]))
    assert tags[1] == b"kernel verbose\0"
    start, end = struct.unpack_from("<II", tags[3])
    assert memory.read(start, end - start) == b"module"
    assert tags[3][8:] == b"data x\0"
    assert struct.unpack_from("<IIQQII", tags[6]) == (24, 0, 0, mm.EBDA_BASE, 1, 0)
    assert len(tags[15]) == 36
    assert tags[0] == b""


@pytest.mark.parametrize("is_64", [False, True])
def test_elf_kernels(tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap, is_64: bool) -> None:
    code = header_1(0) + b"\xf4" * 16
    elf = bytearray(Elf(is_64=is_64, entry=None, segments=[(0x10_0000, code, 4096)]).build())
    struct.pack_into("<Q" if is_64 else "<I", elf, 24, 0x10_000C)
    state = boot(tmp_path, memory, layout, bytes(elf))
    assert state.regs["rip"] == 0x10_000C
    assert memory.read(0x10_0000, len(code)) == code


def test_pvh_goes_before_multiboot_but_not_with_modules(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap
) -> None:
    elf = bytearray(Elf(segments=[(0x10_0000, header_1(0) + b"\xf4" * 16, 4096)]).build())
    struct.pack_into("<Q", elf, 24, 0x10_000C)
    assert "rax" not in boot(tmp_path, memory, layout, bytes(elf)).regs
    (tmp_path / "data").write_bytes(b"module")
    state = boot(tmp_path, memory, layout, bytes(elf), (f"{tmp_path}/data",))
    assert state.regs["rax"] == 0x2BADB002


BAD: dict[str, tuple[bytes, type[SubletError], str]] = {
    "unknown requirement": (header_1(0x8), UnsupportedImage, "flags 0x8"),
    "no addresses": (header_1(0).ljust(600, b"\0"), UnsupportedImage, "flags bit 16"),
    "cut addresses": (header_1(0x10000), CorruptImage, "no addresses"),
    "impossible addresses": (
        header_1(0x10000, (LOAD, LOAD + 4, 0, 0, LOAD)).ljust(64, b"\0"),
        CorruptImage,
        "load_addr",
    ),
    "load_end_addr": (
        header_1(0x10000, (LOAD, LOAD, LOAD + 4096, 0, LOAD)).ljust(64, b"\0"),
        CorruptImage,
        "load_end_addr",
    ),
    "beyond memory": (
        header_1(0x10000, (0x7000_0000, 0x7000_0000, 0, 0, 0)).ljust(64, b"\0"),
        UsageError,
        "64 MiB",
    ),
    "below 1 MiB": (header_1(0x10000, (0x8000, 0x8000, 0, 0, 0)).ljust(64, b"\0"), UsageError, "0x8000"),
    "architecture": (header_2(architecture=4), UnsupportedImage, "architecture 4"),
    "unknown tag": (header_2(tag(99, b"")), UnsupportedImage, "tag 99"),
    "unknown information": (header_2(tag(1, struct.pack("<I", 77))), UnsupportedImage, "type 77"),
    "short tag": (header_2(tag(3, b"")), CorruptImage, "tag 3"),
    "no entry": (header_2(tag(2, struct.pack("<IIII", LOAD, LOAD, 0, 0))), CorruptImage, "without an entry"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_headers_name_the_field(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap, name: str
) -> None:
    image, error, text = BAD[name]
    with pytest.raises(error) as caught:
        boot(tmp_path, memory, layout, image)
    assert text in caught.value.message


def test_a_linux_kernel_takes_no_modules(tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap) -> None:
    with pytest.raises(UsageError, match="no multiboot header"):
        boot(tmp_path, memory, layout, Bzimage().build(), ("x",))


def test_a_packed_kernel_is_said_to_be_packed(
    tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap
) -> None:
    with pytest.raises(UnsupportedImage, match="gzip -d"):
        boot(tmp_path, memory, layout, b"\x1f\x8b" + bytes(1000), ("x",))


def test_modules_are_looked_for_before_anything_starts(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(flat_1())
    with pytest.raises(UsageError, match="no module at"):
        check_files(kernel, None, (f"{tmp_path}/none args",))


def test_modules_larger_than_memory(tmp_path: Path, memory: FakeVmMemory, layout: mm.MemoryMap) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(63 << 20)
    with pytest.raises(UsageError, match="does not fit behind the kernel"):
        boot(tmp_path, memory, layout, flat_1(), (f"{tmp_path}/big",))


def test_a_module_s_name_may_have_blanks(tmp_path: Path) -> None:
    path = tmp_path / "my data"
    path.write_bytes(b"x")
    assert parse_module(str(path)).text == b"my data"
    with pytest.raises(UsageError, match="missing"):
        parse_module("  ")
