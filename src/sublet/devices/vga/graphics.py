"""Graphics modes of the VGA itself, and the linear ones of the display interface, as pixels.

Reference: IBM VGA XGA Technical Reference (1992) §1 "Graphics Modes"; Bochs "VBE Display Interface".
"""

from __future__ import annotations

from collections.abc import Callable

from sublet.devices.vga import pixels as px
from sublet.devices.vga.adapter import Vga
from sublet.devices.vga.dispi import LinearMode
from sublet.devices.vga.registers import ATTRIBUTE_PLANES, GRAPHICS_MODE
from sublet.devices.vga.scanout import fetch, scan_out

_SHIFT_PAIRS, _SHIFT_256 = 0x20, 0x40
"""Graphics controller mode: two bits a pixel from pairs of planes; bytes of all planes in turn."""

_DOTS_A_WORD = 8
"""In every VGA mode a word of the planes is eight dots wide."""

_DIRECT: dict[int, Callable[[bytes], bytes]] = {
    15: lambda data: px.from_16_bits(data, 15),
    16: lambda data: px.from_16_bits(data, 16),
    24: px.from_24_bits,
    32: px.from_32_bits,
}
_BYTES = {8: 1, 15: 2, 16: 2, 24: 3, 32: 4}


def has_256_colours(vga: Vga) -> bool:
    """Whether a VGA mode's pixels go to the DAC as they are, without the attribute controller's palette."""
    return bool(vga.registers.graphics[GRAPHICS_MODE] & _SHIFT_256)


def draw_graphics(vga: Vga) -> tuple[int, int, bytes]:
    """Width, height and pixels (a byte each) of a VGA graphics mode. Callers have settled the adapter."""
    frame = scan_out(vga.registers)
    addresses = list(dict.fromkeys(line.address for line in frame.lines))
    # One word more than is shown: panning moves it in from the right.
    words = frame.columns + 1
    raw = b"".join(fetch(vga.memory, address, words) for address in addresses)
    shown = vga.registers.attribute[ATTRIBUTE_PLANES] & 0xF
    if has_256_colours(vga):
        dots = px.doubled(raw)
    elif vga.registers.graphics[GRAPHICS_MODE] & _SHIFT_PAIRS:
        dots = px.from_pairs(raw, shown)
    else:
        dots = px.from_planes(raw, shown)
    start_of = {address: _DOTS_A_WORD * words * index for index, address in enumerate(addresses)}
    starts = [start_of[line.address] + line.pan for line in frame.lines]
    width = _DOTS_A_WORD * frame.columns
    picture = b"".join(dots[start : start + width] for start in starts)
    if frame.half_clock:
        return 2 * width, len(starts), px.doubled(picture)
    return width, len(starts), picture


def draw_linear_indexed(vga: Vga, mode: LinearMode) -> bytes:
    """Pixels of a byte each of a linear mode of 4 or 8 bits."""
    if mode.bits == 4:
        raw = _lines(vga.memory, mode, mode.width // 2, 4)
        return px.from_planes(raw, vga.registers.attribute[ATTRIBUTE_PLANES] & 0xF)
    return _lines(vga.memory, mode, mode.width, 1)


def draw_linear_direct(vga: Vga, mode: LinearMode) -> bytes:
    """RGB of a linear mode of 15 bits or more."""
    return _DIRECT[mode.bits](_lines(vga.memory, mode, mode.width * _BYTES[mode.bits], 1))


def _lines(memory: memoryview, mode: LinearMode, size: int, scale: int) -> bytes:
    """``size`` bytes of every line; ``scale``: bytes of memory for each of start and pitch."""
    start, pitch = scale * mode.start, scale * mode.pitch
    if pitch == size:
        raw = bytes(memory[start : start + mode.height * size])
    else:
        raw = b"".join(memory[at : at + size] for at in range(start, start + mode.height * pitch, pitch))
    return raw.ljust(mode.height * size, b"\0")
