"""The screen as a picture, in every mode."""

from __future__ import annotations

from typing import NamedTuple

from sublet.devices.vga import pixels as px
from sublet.devices.vga.adapter import Vga
from sublet.devices.vga.graphics import (
    draw_graphics,
    draw_linear_direct,
    draw_linear_indexed,
    has_256_colours,
)
from sublet.devices.vga.text import draw_text, is_text, palette_indices

_BLANK_WIDTH, _BLANK_HEIGHT = 640, 400


class Picture(NamedTuple):
    """``rgb`` has three bytes a pixel, rows from the top, without padding."""

    width: int
    height: int
    rgb: bytes


def render(vga: Vga, *, blink_on: bool = True) -> Picture:
    """Draw what a monitor would show now; a screen that is off is black.

    Args:
        vga: The adapter.
        blink_on: Whether blinking characters and the cursor show.
    """
    with vga.settled():
        if not vga.registers.screen_on:
            return _blank(vga)
        if vga.dispi.enabled:
            return _render_linear(vga)
        if is_text(vga.registers):
            width, height, pixels = draw_text(vga, blink_on=blink_on)
        else:
            width, height, pixels = draw_graphics(vga)
            if has_256_colours(vga):
                return Picture(width, height, px.through_palette(pixels, vga.registers.palette.tables()))
        return Picture(width, height, px.through_palette(pixels, _sixteen_colours(vga)))


def _blank(vga: Vga) -> Picture:
    width, height = _BLANK_WIDTH, _BLANK_HEIGHT
    if vga.dispi.enabled:
        mode = vga.dispi.mode()
        width, height = mode.width, mode.height
    return Picture(width, height, bytes(3 * width * height))


def _render_linear(vga: Vga) -> Picture:
    mode = vga.dispi.mode()
    if mode.bits > 8:
        return Picture(mode.width, mode.height, draw_linear_direct(vga, mode))
    tables = _sixteen_colours(vga) if mode.bits == 4 else vga.registers.palette.tables()
    pixels = draw_linear_indexed(vga, mode)
    return Picture(mode.width, mode.height, px.through_palette(pixels, tables))


def _sixteen_colours(vga: Vga) -> tuple[bytes, bytes, bytes]:
    """Tables for pixels 0 to 15, through the attribute controller's palette and the DAC."""
    indices = palette_indices(vga.registers)
    red, green, blue = (
        bytes(table[i] for i in indices).ljust(256, b"\0") for table in vga.registers.palette.tables()
    )
    return red, green, blue
