"""Register values of the BIOS's modes, and how to set them by hand.

Reference: IBM VGA XGA Technical Reference (1992) §2 "Register values of the BIOS modes".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tests.judges.vga.adapters import Adapter

_EGA_COLOURS = bytes.fromhex("000102030405140738393a3b3c3d3e3f")
_LINEAR_COLOURS = bytes(range(16))


@dataclass(frozen=True)
class Mode:
    """Values of all register files, from register 0 on."""

    misc: int
    sequencer: bytes
    crtc: bytes
    graphics: bytes
    attribute: bytes


def _mode(misc: int, sequencer: str, crtc: str, graphics: str, colours: bytes, attribute: str) -> Mode:
    attributes = colours + bytes.fromhex(attribute)
    return Mode(misc, bytes.fromhex(sequencer), bytes.fromhex(crtc), bytes.fromhex(graphics), attributes)


TEXT_80X25 = _mode(
    0x67,
    "0300030002",
    "5f4f50825581bf1f004f0d0e000000009c8e8f281f96b9a3ff",
    "0000000000100e00ff",
    _EGA_COLOURS,
    "04000f0800",
)
"""Nine dots, blinking off (bit 3 of the attribute mode), so that all 16 backgrounds show."""
TEXT_40X25_8_DOTS = replace(
    TEXT_80X25,
    sequencer=bytes.fromhex("0309030002"),
    crtc=bytes.fromhex("2d2728902ba0bf1f004f0d0e000000009c8e8f141f96b9a3ff"),
    attribute=TEXT_80X25.attribute[:0x13] + b"\0\0",
)
MODE_04 = _mode(
    0x63,
    "0309030002",
    "2d2728902b80bf1f00c10000000000009c8e8f140096b9a2ff",
    "0000000000300f00ff",
    bytes.fromhex("00131517020406071011121314151617"),
    "0100030000",
)
MODE_06 = _mode(
    0x63,
    "0301010006",
    "5f4f50825480bf1f00c10000000000009c8e8f280096b9c2ff",
    "0000000000000d00ff",
    bytes.fromhex("00171717171717171717171717171717"),
    "0100010000",
)
MODE_0D = _mode(
    0x63,
    "03090f0006",
    "2d2728902b80bf1f00c00000000000009c8e8f140096b9e3ff",
    "000000000000050fff",
    _LINEAR_COLOURS,
    "01000f0000",
)
MODE_12 = _mode(
    0xE3,
    "03010f0006",
    "5f4f508254800b3e0040000000000000ea8cdf2800e704e3ff",
    "000000000000050fff",
    _EGA_COLOURS,
    "01000f0000",
)
MODE_13 = _mode(
    0x63,
    "03010f000e",
    "5f4f50825480bf1f00410000000000009c8e8f284096b9a3ff",
    "000000000040050fff",
    _LINEAR_COLOURS,
    "41000f0000",
)
MODE_X = replace(
    MODE_13,
    sequencer=bytes.fromhex("03010f0006"),
    crtc=bytes.fromhex("5f4f50825480bf1f00410000000000009c8e8f280096b9e3ff"),
)
"""Mode 13h unchained: four pages of 320 x 200."""


def set_mode(adapter: Adapter, mode: Mode) -> None:
    """Write every register, as a BIOS does, and turn the screen on."""
    adapter.outb(0x3C2, mode.misc)
    write_file(adapter, 0x3C4, enumerate(mode.sequencer))
    write_file(adapter, 0x3D4, [(0x11, mode.crtc[0x11] & 0x7F)])
    write_file(adapter, 0x3D4, enumerate(mode.crtc))
    write_file(adapter, 0x3CE, enumerate(mode.graphics))
    adapter.inb(0x3DA)
    for index, value in enumerate(mode.attribute):
        adapter.outb(0x3C0, index)
        adapter.outb(0x3C0, value)
    adapter.outb(0x3C0, 0x20)


def write_file(adapter: Adapter, index_port: int, values: Iterable[tuple[int, int]]) -> None:
    """Write registers of one file: (index, value)."""
    for index, value in values:
        adapter.outw(index_port, index | value << 8)


def set_palette(adapter: Adapter, colours: bytes) -> None:
    """Fill the DAC from colour 0 on."""
    adapter.outb(0x3C8, 0)
    for value in colours:
        adapter.outb(0x3C9, value)


def set_linear(adapter: Adapter, width: int, height: int, bits: int, flags: int = 0x41) -> None:
    """Set a mode of the display interface."""
    for index, value in ((4, 0), (1, width), (2, height), (3, bits), (4, flags)):
        write_dispi(adapter, index, value)


def write_dispi(adapter: Adapter, index: int, value: int) -> None:
    """Write a register of the display interface."""
    adapter.outw(0x1CE, index)
    adapter.outw(0x1CF, value)


def read_dispi(adapter: Adapter, index: int) -> int:
    """Read a register of the display interface."""
    adapter.outw(0x1CE, index)
    return adapter.inw(0x1CF)
