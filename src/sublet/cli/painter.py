"""A machine's screen drawn into a terminal: only what changed since the last time.

Reference: ECMA-48 (5th edition) §8.3 "Definition of control functions"; xterm "XTerm Control Sequences"
(patch 379) for colours beyond sixteen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from sublet.devices.vga import Cell, Picture, TextScreen

Glyph = tuple[str, str]
"""A character and its style, the parameters of SGR."""
Row = list[Glyph]

BLANK: Final[Glyph] = (" ", "0")
UPPER_HALF: Final = "▀"
_ANSI_OF_VGA: Final = (0, 4, 2, 6, 1, 5, 3, 7)
"""A VGA has blue in bit 0 and red in bit 2; a terminal the other way round."""
_FEWEST: Final = 1


@dataclass(frozen=True)
class Frame:
    """What the terminal shows: rows of glyphs, and the cursor's column and row."""

    rows: list[Row]
    cursor: tuple[int, int] | None


def text_frame(screen: TextScreen, columns: int, rows: int) -> Frame:
    """The part of a text screen that fits into a terminal; round the cursor if not all does."""
    column, row = screen.cursor or (0, 0)
    left, top = _first_shown(column, screen.columns, columns), _first_shown(row, screen.rows, rows)
    shown = range(top, min(top + rows, screen.rows))
    width = min(columns, screen.columns)
    starts = [at * screen.columns + left for at in shown]
    glyphs = [[_glyph(cell) for cell in screen.cells[start : start + width]] for start in starts]
    cursor = None if screen.cursor is None else (column - left, row - top)
    return Frame(_fill(glyphs, columns, rows), cursor)


def _first_shown(cursor: int, size: int, room: int) -> int:
    return max(0, min(cursor - room + 1, size - room))


def _fill(glyphs: list[Row], columns: int, rows: int) -> list[Row]:
    """Blank glyphs where the screen is smaller than the terminal."""
    full = [row + [BLANK] * (columns - len(row)) for row in glyphs]
    return full + [[BLANK] * columns for _ in range(rows - len(full))]


@lru_cache(maxsize=8192)
def _glyph(cell: Cell) -> Glyph:
    style = ["0"]
    if cell.blinks:
        style.append("5")
    if cell.underlined:
        style.append("4")
    style.append(str((90 if cell.foreground & 8 else 30) + _ANSI_OF_VGA[cell.foreground & 7]))
    style.append(str((100 if cell.background & 8 else 40) + _ANSI_OF_VGA[cell.background & 7]))
    return cell.character, ";".join(style)


def picture_frame(picture: Picture, columns: int, rows: int, *, truecolour: bool) -> Frame:
    """A picture made small, two pixels above each other in every character."""
    colour = _truecolour if truecolour else _colour_of_256
    scale = max(picture.width / columns, picture.height / (2 * rows))
    width = max(min(int(picture.width / scale), columns), _FEWEST)
    height = max(min(int(picture.height / scale) // 2, rows), _FEWEST)
    across = [3 * min(int(x * scale), picture.width - 1) for x in range(width)]
    glyphs = []
    for y in range(height):
        upper, lower = (_line(picture, int((2 * y + half) * scale)) for half in (0, 1))
        glyphs.append(
            [(UPPER_HALF, f"0;38;{colour(upper[x : x + 3])};48;{colour(lower[x : x + 3])}") for x in across]
        )
    return Frame(_fill(glyphs, columns, rows), None)


def _line(picture: Picture, y: int) -> bytes:
    stride = 3 * picture.width
    start = stride * min(y, picture.height - 1)
    return picture.rgb[start : start + stride]


@lru_cache(maxsize=65536)
def _truecolour(rgb: bytes) -> str:
    return f"2;{rgb[0]};{rgb[1]};{rgb[2]}"


@lru_cache(maxsize=65536)
def _colour_of_256(rgb: bytes) -> str:
    """The nearest of the 6 by 6 by 6 cube."""
    red, green, blue = (round(value / 51) for value in rgb)
    return f"5;{16 + 36 * red + 6 * green + blue}"


class Painter:
    """Remembers what the terminal shows.

    Args:
        write: Takes bytes for the terminal.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._rows: list[Row] = []
        self._size = (0, 0)
        self._cursor: tuple[int, int] | None = None

    def show(self, frame: Frame) -> None:
        """Bring the terminal up to date."""
        size = (len(frame.rows), len(frame.rows[0]) if frame.rows else 0)
        parts = []
        if size != self._size:
            parts.append("\x1b[0m\x1b[2J")
            self._rows = [[BLANK] * size[1] for _ in range(size[0])]
            self._size = size
        for index, (old, new) in enumerate(zip(self._rows, frame.rows, strict=True)):
            if old != new:
                parts.append(_changed(index, old, new))
        if parts or frame.cursor != self._cursor:
            parts.append(_place_cursor(frame.cursor))
            self._write("".join(parts).encode())
        self._rows, self._cursor = frame.rows, frame.cursor

    def forget(self) -> None:
        """Draw everything afresh the next time."""
        self._size = (0, 0)


def _changed(index: int, old: Row, new: Row) -> str:
    """From the first glyph of a row that differs to the last."""
    differing = [at for at, (before, after) in enumerate(zip(old, new, strict=True)) if before != after]
    first, last = differing[0], differing[-1]
    parts = ["\x1b[?25l", f"\x1b[{index + 1};{first + 1}H"]
    style = ""
    for character, wanted in new[first : last + 1]:
        if wanted != style:
            parts.append(f"\x1b[{wanted}m")
            style = wanted
        parts.append(character)
    return "".join(parts)


def _place_cursor(cursor: tuple[int, int] | None) -> str:
    if cursor is None:
        return "\x1b[0m\x1b[?25l"
    return f"\x1b[0m\x1b[{cursor[1] + 1};{cursor[0] + 1}H\x1b[?25h"
