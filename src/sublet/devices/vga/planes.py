"""Four planes of video memory as the CPU reaches them: latches, write modes, read modes.

The planes lie side by side: word ``n`` of video memory holds byte ``n`` of planes 0 to 3, plane 0 lowest.
Chained and odd/even addressing spread the CPU's bytes over the words without gaps, as clones do.

Reference: IBM VGA XGA Technical Reference (1992) §2 "Graphics Controller"; §1 "Memory Operations".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sublet.devices.vga.registers import (
    GRAPHICS_MODE,
    GRAPHICS_READ_MAP,
    SEQUENCER_MAP_MASK,
    SEQUENCER_MEMORY_MODE,
    VgaRegisters,
)

SET_RESET, ENABLE_SET_RESET, COLOUR_COMPARE, ROTATE, COLOUR_IGNORE, BIT_MASK = 0, 1, 2, 3, 7, 8
MODE_READ_COMPARE = 0x08
MODE_ODD_EVEN = 0x10
MEMORY_CHAIN_4 = 0x08

_ALL_PLANES = 0x0101_0101
_SPREAD = tuple(sum(0xFF << 8 * plane for plane in range(4) if value >> plane & 1) for value in range(16))
"""For four bits, a word with all ones in each plane whose bit is set."""
_COMBINE: tuple[Callable[[int, int], int], ...] = (
    lambda data, latch: data,
    lambda data, latch: data & latch,
    lambda data, latch: data | latch,
    lambda data, latch: data ^ latch,
)
"""Data rotate register bits 4:3."""


def is_chained(registers: VgaRegisters) -> bool:
    """Whether bytes of the CPU go to consecutive bytes of video memory (chain 4)."""
    return bool(registers.sequencer[SEQUENCER_MEMORY_MODE] & MEMORY_CHAIN_4)


def is_odd_even(registers: VgaRegisters) -> bool:
    """Whether even addresses go to plane 0 (or 2) and odd ones to plane 1 (or 3), as in text modes."""
    return bool(registers.graphics[GRAPHICS_MODE] & MODE_ODD_EVEN) and not is_chained(registers)


class Planes:
    """Single-byte accesses at offsets in the memory window, banks included. Offsets past the end float.

    Args:
        memory: Video memory, a multiple of 4 bytes.
        registers: Decide what an access does.
    """

    def __init__(self, memory: memoryview, registers: VgaRegisters) -> None:
        self._bytes = memory
        self._words = memory.cast("I")
        self._registers = registers
        self.latch = 0
        """What the last planar read fetched: one byte of each plane."""

    def read(self, offset: int) -> int:
        """The byte that the CPU reads at ``offset``."""
        registers = self._registers
        if is_chained(registers):
            return self._bytes[offset] if offset < len(self._bytes) else 0xFF
        if is_odd_even(registers):
            at = self._odd_even(offset)
            return self._bytes[at] if at < len(self._bytes) else 0xFF
        if offset >= len(self._words):
            return 0xFF
        latch = self.latch = self._words[offset]
        graphics = registers.graphics
        if graphics[GRAPHICS_MODE] & MODE_READ_COMPARE:
            return _compare(latch, graphics[COLOUR_COMPARE], graphics[COLOUR_IGNORE])
        return latch >> 8 * (graphics[GRAPHICS_READ_MAP] & 3) & 0xFF

    def write(self, offset: int, value: int) -> None:
        """The CPU writes a byte at ``offset``."""
        registers = self._registers
        mask = registers.sequencer[SEQUENCER_MAP_MASK]
        if is_chained(registers):
            if offset < len(self._bytes) and mask >> (offset & 3) & 1:
                self._bytes[offset] = value
        elif is_odd_even(registers):
            at = self._odd_even(offset)
            if at < len(self._bytes) and mask >> (at & 3) & 1:
                self._bytes[at] = value
        elif offset < len(self._words):
            written = _SPREAD[mask & 0xF]
            data = self._planar_data(value)
            self._words[offset] = self._words[offset] & ~written | data & written

    def _odd_even(self, offset: int) -> int:
        """Byte of video memory for a byte address: plane by bit 0, words without gaps."""
        plane = self._registers.graphics[GRAPHICS_READ_MAP] & 2 | offset & 1
        return (offset & ~1) << 1 | plane

    def _planar_data(self, value: int) -> int:
        """The word that the four planes are offered, by write mode."""
        graphics = self._registers.graphics
        mode = graphics[GRAPHICS_MODE] & 3
        if mode == 1:
            return self.latch
        bits = graphics[BIT_MASK]
        if mode == 2:
            data = _SPREAD[value & 0xF]
        else:
            value = _rotate_right(value, graphics[ROTATE] & 7)
            if mode == 3:
                bits &= value
                data = _SPREAD[graphics[SET_RESET]]
            else:
                fixed = _SPREAD[graphics[ENABLE_SET_RESET]]
                data = value * _ALL_PLANES & ~fixed | _SPREAD[graphics[SET_RESET]] & fixed
        data = _COMBINE[graphics[ROTATE] >> 3](data, self.latch)
        chosen = bits * _ALL_PLANES
        return data & chosen | self.latch & ~chosen

    def reset(self) -> None:
        """Empty latches; memory keeps what it has."""
        self.latch = 0

    def save_state(self) -> dict[str, Any]:
        """The latches."""
        return {"latch": self.latch}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self.latch = state["latch"]


def _rotate_right(value: int, count: int) -> int:
    return (value >> count | value << 8 - count) & 0xFF


def _compare(latch: int, colour: int, care: int) -> int:
    """Read mode 1: a one for each pixel that equals ``colour`` in the planes that ``care`` names."""
    differs = (latch ^ _SPREAD[colour]) & _SPREAD[care]
    differs |= differs >> 16
    return ~(differs | differs >> 8) & 0xFF
