"""The Bochs display interface: linear modes by eleven 16-bit registers, at ports 1CEh to 1D0h and in BAR 2.

Reference: Bochs "VBE Display Interface" (vbe_display_api.txt), identifier B0C5h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ID, X_RESOLUTION, Y_RESOLUTION, BITS, ENABLE, BANK = range(6)
VIRTUAL_WIDTH, VIRTUAL_HEIGHT, X_OFFSET, Y_OFFSET, MEMORY_64K = range(6, 11)
REGISTER_COUNT = 11

ENABLED = 0x01
GET_CAPABILITIES = 0x02
PALETTE_8_BITS = 0x20
LINEAR = 0x40
KEEP_MEMORY = 0x80

_IDS = range(0xB0C0, 0xB0C6)
_CAPABILITIES = {X_RESOLUTION: 16000, Y_RESOLUTION: 12000, BITS: 32}
_STORAGE_BITS = {4: 4, 8: 8, 15: 16, 16: 16, 24: 24, 32: 32}
"""Bits that a pixel takes in memory, by what the bits register says."""
BANK_SIZE = 64 << 10


@dataclass(frozen=True)
class LinearMode:
    """What is on the screen while the interface is enabled."""

    width: int
    height: int
    bits: int
    """4, 8, 15, 16, 24 or 32."""
    start: int
    """Offset of the first pixel in video memory; with 4 bits in each plane, in bytes."""
    pitch: int
    """Bytes from one line to the next; with 4 bits in each plane."""


class Dispi:
    """The registers. Bad input, by design: sizes are rounded and clipped to what fits into memory.

    Args:
        memory_size: Bytes of video memory.
        on_enable: Called when a mode begins, with whether memory is to be cleared.
        on_change: Called after every change of the bank or of the palette's width.
    """

    def __init__(
        self, memory_size: int, on_enable: Callable[[bool], None], on_change: Callable[[], None]
    ) -> None:
        self._memory_size = memory_size
        self._on_enable = on_enable
        self._on_change = on_change
        self._set_power_on_values()

    def _set_power_on_values(self) -> None:
        self._index = 0
        self._values = [0] * REGISTER_COUNT
        self._values[ID] = _IDS[-1]

    @property
    def enabled(self) -> bool:
        """Whether a mode of this interface is on the screen."""
        return bool(self._values[ENABLE] & ENABLED)

    @property
    def wide_palette(self) -> bool:
        """Whether palette components have 8 bits."""
        return bool(self._values[ENABLE] & PALETTE_8_BITS)

    @property
    def bank_offset(self) -> int:
        """Offset in video memory that A0000h shows."""
        return self._values[BANK] * BANK_SIZE

    def mode(self) -> LinearMode:
        """The mode, while ``enabled``."""
        values = self._values
        bits = values[BITS]
        pitch = values[VIRTUAL_WIDTH] * (_STORAGE_BITS[bits] if bits > 4 else 1) // 8
        across = values[X_OFFSET] * (_STORAGE_BITS[bits] if bits > 4 else 1) // 8
        start = values[Y_OFFSET] * pitch + across
        return LinearMode(values[X_RESOLUTION], values[Y_RESOLUTION], bits, start, pitch)

    # Guest side

    def read_index(self) -> int:
        """The index register."""
        return self._index

    def write_index(self, value: int) -> None:
        """Choose a register."""
        self._index = value & 0xFFFF

    def read_data(self) -> int:
        """The register that the index chooses."""
        return self.read(self._index)

    def write_data(self, value: int) -> None:
        """Write the register that the index chooses."""
        self.write(self._index, value)

    def read(self, index: int) -> int:
        """A register, or what the adapter can do; 0 where there is none."""
        if self._values[ENABLE] & GET_CAPABILITIES and index in _CAPABILITIES:
            return _CAPABILITIES[index]
        if index == MEMORY_64K:
            return self._memory_size // BANK_SIZE
        return self._values[index] if index < REGISTER_COUNT else 0

    def write(self, index: int, value: int) -> None:
        """Write a register; those that are read-only or absent ignore it."""
        if index == ENABLE:
            self._write_enable(value & 0xFFFF)
        elif index == ID:
            self._values[ID] = value if value in _IDS else self._values[ID]
        elif index == BANK:
            self._values[BANK] = (value & 0xFFFF) % (self._memory_size // BANK_SIZE)
            self._on_change()
        elif index in (X_RESOLUTION, Y_RESOLUTION, BITS, VIRTUAL_WIDTH, X_OFFSET, Y_OFFSET):
            self._values[index] = value & 0xFFFF
            if self.enabled:
                self._fit()

    def _write_enable(self, value: int) -> None:
        begins = value & ENABLED and not self.enabled
        self._values[ENABLE] = value
        if begins:
            self._values[VIRTUAL_WIDTH] = self._values[X_OFFSET] = self._values[Y_OFFSET] = 0
            self._fit()
            self._on_enable(not value & KEEP_MEMORY)
        else:
            self._values[BANK] = 0
        self._on_change()

    def _fit(self) -> None:
        """Make the mode one that exists: whole groups of 8 pixels, at least one line, all of it in memory."""
        values = self._values
        if values[BITS] not in _STORAGE_BITS:
            values[BITS] = 8
        # With 4 bits, memory for 8 is asked for: a picture of more than 16 Mi pixels would serve nobody.
        bits = max(_STORAGE_BITS[values[BITS]], 8)
        widest = min(_CAPABILITIES[X_RESOLUTION], self._memory_size * 8 // bits) & ~7
        values[X_RESOLUTION] = min(max(values[X_RESOLUTION] & ~7, 8), widest)
        values[VIRTUAL_WIDTH] = min(max(values[VIRTUAL_WIDTH] & ~7, values[X_RESOLUTION]), widest)
        pitch = values[VIRTUAL_WIDTH] * bits // 8
        lines = self._memory_size // pitch
        values[Y_RESOLUTION] = min(max(values[Y_RESOLUTION], 1), lines, _CAPABILITIES[Y_RESOLUTION])
        values[VIRTUAL_HEIGHT] = min(lines, 0xFFFF)
        for offset in (Y_OFFSET, X_OFFSET):
            start = values[Y_OFFSET] * pitch + values[X_OFFSET] * bits // 8
            if start + values[Y_RESOLUTION] * pitch > self._memory_size:
                values[offset] = 0

    # Lifecycle

    def reset(self) -> None:
        """Power-on state: disabled."""
        self._set_power_on_values()
        self._on_change()

    def save_state(self) -> dict[str, Any]:
        """The registers."""
        return {"index": self._index, "values": list(self._values)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._index = state["index"]
        self._values = list(state["values"])
        self._on_change()
