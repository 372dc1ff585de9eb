"""Expansion ROMs made out to the card that carries them."""

from __future__ import annotations

import struct

import pytest

from sublet.machine.boot_roms import for_device


def make_rom() -> bytes:
    """A ROM for 8086:100e whose bytes add up to 0."""
    rom = bytearray(512)
    rom[:6] = b"\x55\xaa\x01\xe9\x10\x00"
    struct.pack_into("<H", rom, 0x18, 0x1C)
    struct.pack_into("<4sHH", rom, 0x1C, b"PCIR", 0x8086, 0x100E)
    rom[-1] = -sum(rom) & 0xFF
    return bytes(rom)


def test_the_identity_and_the_checksum() -> None:
    rom = for_device(make_rom(), 0x1AF4, 0x1000)
    assert struct.unpack_from("<HH", rom, 0x20) == (0x1AF4, 0x1000)
    assert sum(rom) % 256 == 0


def test_its_own_card() -> None:
    assert for_device(make_rom(), 0x8086, 0x100E) == make_rom()


@pytest.mark.parametrize(
    "rom", [b"", b"\x55\xaa", bytes(512), b"\x55\xaa".ljust(0x18) + b"\xff\xff" + bytes(486)], ids=len
)
def test_what_is_no_rom(rom: bytes) -> None:
    assert for_device(rom, 1, 2) == rom
