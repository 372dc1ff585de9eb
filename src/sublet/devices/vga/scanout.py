"""What the CRTC fetches for each scan line of a VGA mode.

Reference: IBM VGA XGA Technical Reference (1992) §2 "CRT Controller".
"""

from __future__ import annotations

from dataclasses import dataclass

from sublet.devices.vga.registers import (
    ATTRIBUTE_MODE,
    ATTRIBUTE_PANNING,
    SEQUENCER_CLOCKING,
    VgaRegisters,
)

WORDS = 0x1_0000
"""Words of the four planes that a VGA mode addresses; the counter wraps there."""
HALF_CLOCK = 0x08
"""Sequencer clocking mode: every pixel lasts two dot clocks."""
_PAN_ONLY_ABOVE_SPLIT = 0x20
_NINE_DOT_PAN_ORIGIN = 8
"""In 9-dot modes, a panning of 8 means none and 0 to 7 mean one to eight dots."""


@dataclass(frozen=True)
class ScanLine:
    """One line of the screen: the first word, the row of the character, and dots to skip at the left."""

    address: int
    row: int
    pan: int


@dataclass(frozen=True)
class Scanout:
    """A frame. ``columns`` counts characters of eight dots, or of nine."""

    columns: int
    lines: tuple[ScanLine, ...]
    half_clock: bool


def scan_out(registers: VgaRegisters, *, nine_dots: bool = False) -> Scanout:
    """Follow the CRTC through one frame."""
    crtc = registers.crtc
    overflow, cell = crtc[0x07], crtc[0x09]
    height = (crtc[0x12] | (overflow & 0x02) << 7 | (overflow & 0x40) << 3) + 1
    split = crtc[0x18] | (overflow & 0x10) << 4 | (cell & 0x40) << 3
    repeat = 2 if cell & 0x80 else 1
    rows = (cell & 0x1F) + 1
    pitch = 2 * crtc[0x13]
    pan = _panning(registers, nine_dots)
    pan_below = 0 if registers.attribute[ATTRIBUTE_MODE] & _PAN_ONLY_ABOVE_SPLIT else pan
    base = (crtc[0x0C] << 8 | crtc[0x0D]) + (crtc[0x08] >> 5 & 3)
    row, repeated = min(crtc[0x08] & 0x1F, rows - 1), 0
    lines = []
    for line in range(height):
        lines.append(ScanLine(_substitute_rows(base % WORDS, row, crtc[0x17]), row, pan))
        repeated += 1
        if repeated == repeat:
            repeated = 0
            row += 1
            if row >= rows:
                row, base = 0, base + pitch
        if line == split:
            base, row, repeated, pan = 0, 0, 0, pan_below
    half_clock = bool(registers.sequencer[SEQUENCER_CLOCKING] & HALF_CLOCK)
    return Scanout(crtc[0x01] + 1, tuple(lines), half_clock)


def _panning(registers: VgaRegisters, nine_dots: bool) -> int:
    pan = registers.attribute[ATTRIBUTE_PANNING]
    if nine_dots:
        return 0 if pan >= _NINE_DOT_PAN_ORIGIN else pan + 1
    return pan & 7


def _substitute_rows(address: int, row: int, mode: int) -> int:
    """Address bits 13 and 14 from the row, as CGA and Hercules banks need (CRTC mode control 1:0).

    In word mode (bit 6 clear) the counter is one bit higher on the memory's address lines.
    """
    if not mode & 1:
        bit = 1 << (13 if mode & 0x40 else 12)
        address = address & ~bit | (bit if row & 1 else 0)
    if not mode & 2:
        address = address & ~0x2000 | (0x2000 if row & 2 else 0)
    return address


def fetch(memory: memoryview, address: int, words: int) -> bytes:
    """Words of the four planes from ``address`` on, wrapping at `WORDS`, which ``words`` does not exceed."""
    address %= WORDS
    head = min(words, WORDS - address)
    data = bytes(memory[4 * address : 4 * (address + head)])
    return data + bytes(memory[: 4 * (words - head)])
