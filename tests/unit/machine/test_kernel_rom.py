"""The option ROM that starts a kernel: its headers, and its code as the assembler makes it."""

from __future__ import annotations

import shutil
import struct

import pytest
from tests.conformance.engine.guests import assemble

from sublet.machine.firmware_multiboot import MULTIBOOT_ENTRY
from sublet.machine.kernel_rom import COPY, LINUX_ENTRY, MAXIMUM_COPIES, Code, Copy, build_kernel_rom

COPIES = [Copy(0x18, 1024, 0x10000), Copy(0x11, 1 << 20, 0x100000)]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs gcc")
@pytest.mark.parametrize("entry", [LINUX_ENTRY, MULTIBOOT_ENTRY], ids=["Linux", "Multiboot"])
def test_the_code_is_what_the_assembler_makes_of_it(entry: Code) -> None:
    code = (*COPY, *entry)
    source = "\n".join(text for _, text in code)
    assert assemble(source, 0, bits=16).hex() == "".join(code for code, _ in code)


def test_headers_and_checksums() -> None:
    rom = build_kernel_rom(COPIES)
    assert rom[:3] == bytes((0x55, 0xAA, len(rom) // 512))
    assert sum(rom) % 256 == 0
    (header,) = struct.unpack_from("<H", rom, 0x1A)
    assert rom[header : header + 4] == b"$PnP"
    assert sum(rom[header : header + 32]) % 256 == 0
    (entry,) = struct.unpack_from("<H", rom, header + 0x1A)
    assert rom[entry : entry + 2].hex() == COPY[0][0]


def test_the_table() -> None:
    rom = build_kernel_rom(COPIES)
    assert struct.unpack_from("<H", rom, 0x40) == (2,)
    assert struct.unpack_from(">HHIQ", rom, 0x210) == (0x11, 0x0A, 1 << 20, 0x100000)


@pytest.mark.parametrize("count", [0, MAXIMUM_COPIES + 1])
def test_too_many_copies_or_none(count: int) -> None:
    with pytest.raises(ValueError, match="copies"):
        build_kernel_rom(COPIES[:1] * count)
