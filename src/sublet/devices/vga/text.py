"""Text modes: the screen as characters with colours, and as pixels drawn with the guest's fonts.

Reference: IBM VGA XGA Technical Reference (1992) §1 "Alphanumeric Modes", §2 "Attribute Controller".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

from sublet.devices.vga.adapter import Vga
from sublet.devices.vga.cp437 import CHARACTERS
from sublet.devices.vga.registers import (
    ATTRIBUTE_COLOUR_SELECT,
    ATTRIBUTE_MODE,
    GRAPHICS_MISC,
    SEQUENCER_CLOCKING,
    SEQUENCER_FONTS,
    VgaRegisters,
)
from sublet.devices.vga.scanout import WORDS, fetch, scan_out

GRAPHICS_MODE_BIT = 0x01
"""Graphics controller misc: pixels, not characters."""
EIGHT_DOTS = 0x01
"""Sequencer clocking mode: characters are 8 dots wide; otherwise 9."""
MODE_MONOCHROME, MODE_LINE_GRAPHICS, MODE_BLINK = 0x02, 0x04, 0x08
_PALETTE_BITS_5_4 = 0x80
_LINE_GRAPHICS = range(0xC0, 0xE0)
"""Characters whose ninth dot repeats the eighth, so that boxes join."""
_CURSOR_OFF = 0x20
_CELL_LIMIT = 160 * 100
"""More characters than any text mode has: a guest that asks for 256 by 1024 gets the upper rows."""
_FONT_STRIDE = 0x2000
_GLYPH_STRIDE = 32
_BOLD_FONT_BIT = 0x08


class Cell(NamedTuple):
    """One character with its colours, 0 to 15, as the attribute says (not the palette)."""

    character: str
    foreground: int
    background: int
    blinks: bool
    underlined: bool


@dataclass(frozen=True)
class TextScreen:
    """What a text mode shows. ``cells`` go by rows; ``cursor`` is a column and a row, None when hidden."""

    columns: int
    rows: int
    cells: tuple[Cell, ...]
    cursor: tuple[int, int] | None
    colours: tuple[tuple[int, int, int], ...]
    """Red, green and blue of the sixteen colours."""

    def text(self) -> str:
        """The characters, a line a row, without what is blank at the right."""
        rows = (self.cells[row * self.columns :][: self.columns] for row in range(self.rows))
        return "\n".join("".join(cell.character for cell in row).rstrip() for row in rows)


def is_text(registers: VgaRegisters) -> bool:
    """Whether the VGA's own registers ask for a text mode."""
    return not registers.graphics[GRAPHICS_MISC] & GRAPHICS_MODE_BIT


def text_screen(vga: Vga) -> TextScreen | None:
    """The screen as characters; None in a graphics mode. A blank screen has blank cells."""
    with vga.settled():
        registers = vga.registers
        if vga.dispi.enabled or not is_text(registers):
            return None
        columns, rows, address, pitch = _geometry(registers)
        raw = b"".join(fetch(vga.memory, address + row * pitch, columns) for row in range(rows))
        if not registers.screen_on:
            raw = bytes(len(raw))
        mode = registers.attribute[ATTRIBUTE_MODE] & (MODE_BLINK | MODE_MONOCHROME)
        cells = tuple(_cell(raw[i], raw[i + 1], mode) for i in range(0, len(raw), 4))
        cursor = _cursor(registers, columns, rows, address, pitch)
        return TextScreen(columns, rows, cells, cursor, _colours(registers))


def _geometry(registers: VgaRegisters) -> tuple[int, int, int, int]:
    """Columns, rows, first word, words from row to row."""
    crtc = registers.crtc
    height = (crtc[0x12] | (crtc[0x07] & 0x02) << 7 | (crtc[0x07] & 0x40) << 3) + 1
    cell_height = ((crtc[0x09] & 0x1F) + 1) * (2 if crtc[0x09] & 0x80 else 1)
    columns = crtc[0x01] + 1
    rows = max(min(height // cell_height, _CELL_LIMIT // columns), 1)
    return columns, rows, crtc[0x0C] << 8 | crtc[0x0D], 2 * crtc[0x13]


@lru_cache(maxsize=4096)
def _cell(character: int, attribute: int, mode: int) -> Cell:
    blinking = mode & MODE_BLINK
    background = attribute >> 4 & (7 if blinking else 15)
    blinks = bool(blinking and attribute & 0x80)
    underlined = bool(mode & MODE_MONOCHROME and attribute & 7 == 1)
    return Cell(CHARACTERS[character], attribute & 15, background, blinks, underlined)


def _cursor_rows(registers: VgaRegisters) -> range:
    """Rows of a character that the cursor fills; empty when it is off."""
    start, end = registers.crtc[0x0A], registers.crtc[0x0B] & 0x1F
    cell_height = (registers.crtc[0x09] & 0x1F) + 1
    return range(0) if start & _CURSOR_OFF else range(start & 0x1F, min(end + 1, cell_height))


def _cursor(
    registers: VgaRegisters, columns: int, rows: int, address: int, pitch: int
) -> tuple[int, int] | None:
    at = (registers.crtc[0x0E] << 8 | registers.crtc[0x0F]) - address
    if not _cursor_rows(registers) or not pitch:
        return None
    row, column = divmod(at % WORDS, pitch)
    return (column, row) if column < columns and row < rows else None


def palette_indices(registers: VgaRegisters) -> bytes:
    """What the attribute controller makes of the 16 colours: indices into the DAC."""
    attribute = registers.attribute
    select = attribute[ATTRIBUTE_COLOUR_SELECT]
    if attribute[ATTRIBUTE_MODE] & _PALETTE_BITS_5_4:
        return bytes((select & 0xF) << 4 | attribute[i] & 0xF for i in range(16))
    return bytes((select & 0xC) << 4 | attribute[i] for i in range(16))


def _colours(registers: VgaRegisters) -> tuple[tuple[int, int, int], ...]:
    red, green, blue = registers.palette.tables()
    return tuple((red[i], green[i], blue[i]) for i in palette_indices(registers))


def draw_text(vga: Vga, *, blink_on: bool) -> tuple[int, int, bytes]:
    """Width, height and pixels (colours 0 to 15). Callers have settled the adapter.

    ``blink_on``: whether blinking characters and the cursor are in the phase that shows them.
    """
    registers = vga.registers
    nine = not registers.sequencer[SEQUENCER_CLOCKING] & EIGHT_DOTS
    frame = scan_out(registers, nine_dots=nine)
    glyph = _glyph_maker(vga, nine=nine, blink_on=blink_on)
    cursor_at = (registers.crtc[0x0E] << 8 | registers.crtc[0x0F]) if blink_on else -1
    cursor_rows = _cursor_rows(registers)
    width = frame.columns * (9 if nine else 8) * (2 if frame.half_clock else 1)
    rows: dict[int, list[tuple[tuple[bytes, ...], int]]] = {}
    lines = []
    for line in frame.lines:
        if line.address not in rows:
            raw = fetch(vga.memory, line.address, frame.columns + 1)
            rows[line.address] = [(glyph(raw[i], raw[i + 1]), raw[i + 1]) for i in range(0, len(raw), 4)]
        cells = rows[line.address]
        pixels = [cell[0][line.row] for cell in cells]
        under_cursor = (cursor_at - line.address) % WORDS
        if line.row in cursor_rows and cursor_at >= 0 and under_cursor < frame.columns:
            attribute = cells[under_cursor][1]
            pixels[under_cursor] = bytes((attribute & 15,)) * len(pixels[under_cursor])
        scale = 2 if frame.half_clock else 1
        lines.append(b"".join(pixels)[line.pan * scale :][:width])
    return width, len(frame.lines), b"".join(lines)


def _glyph_maker(vga: Vga, *, nine: bool, blink_on: bool) -> Callable[[int, int], tuple[bytes, ...]]:
    """A function from character and attribute to the glyph's 32 rows of pixels."""
    registers = vga.registers
    mode = registers.attribute[ATTRIBUTE_MODE]
    fonts = [_font(vga, which) for which in _font_numbers(registers.sequencer[SEQUENCER_FONTS])]
    underline_row = registers.crtc[0x14] & 0x1F
    half = bool(registers.sequencer[SEQUENCER_CLOCKING] & 0x08)

    @cache  # of one frame, so at most 65536 entries
    def glyph(character: int, attribute: int) -> tuple[bytes, ...]:
        cell = _cell(character, attribute, mode & (MODE_BLINK | MODE_MONOCHROME))
        font = fonts[1 if attribute & _BOLD_FONT_BIT else 0]
        rows = font[_GLYPH_STRIDE * character :][:_GLYPH_STRIDE]
        joined = nine and mode & MODE_LINE_GRAPHICS and character in _LINE_GRAPHICS
        foreground = cell.background if cell.blinks and not blink_on else cell.foreground
        colours = bytes((cell.background, foreground)) + bytes(254)
        drawn = []
        for row, bits in enumerate(rows):
            bits = 0xFF if cell.underlined and row == underline_row else bits
            dots = _DOTS[bits]
            if nine:
                dots += dots[-1:] if joined or (cell.underlined and row == underline_row) else b"\0"
            pixels = dots.translate(colours)
            drawn.append(bytes(dot for dot in pixels for _ in range(2)) if half else pixels)
        return tuple(drawn)

    return glyph


_DOTS = [bytes(value >> 7 - dot & 1 for dot in range(8)) for value in range(256)]


def _font_numbers(select: int) -> tuple[int, int]:
    """Which of the eight fonts of plane 2 are used: without and with attribute bit 3."""
    without = (select & 3) << 1 | select >> 4 & 1
    with_bit = (select >> 2 & 3) << 1 | select >> 5 & 1
    return without, with_bit


def _font(vga: Vga, number: int) -> bytes:
    """8 KiB of plane 2: 256 characters of 32 rows."""
    start = 4 * _FONT_STRIDE * number
    return bytes(vga.memory[start + 2 : start + 4 * _FONT_STRIDE : 4])
