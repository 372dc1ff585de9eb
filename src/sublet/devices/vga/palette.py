"""The DAC: 256 colours of three components, written and read one component at a time.

Reference: IBM VGA XGA Technical Reference (1992) §2 "Video Digital-to-Analog Converter".
"""

from __future__ import annotations

from typing import Any

COLOURS = 256

_READING, _WRITING = 3, 0
"""What the state register says of the last address written."""
_WIDEN_6_BITS = bytes((value & 0x3F) << 2 | (value & 0x3F) >> 4 for value in range(256))


class Palette:
    """Palette RAM with its address counters. Components have 6 bits, or 8 while ``wide`` is set."""

    def __init__(self) -> None:
        self._components = bytearray(3 * COLOURS)
        self.reset()

    def reset(self) -> None:
        """Power-on state: all black, every address bit let through."""
        self._components[:] = bytes(3 * COLOURS)
        self.mask = 0xFF
        """ANDed with each pixel before the look-up."""
        self.wide = False
        self._state = _WRITING
        self._read_at = 0
        self._write_at = 0

    @property
    def state(self) -> int:
        """3 after the read address was written, 0 after the write address."""
        return self._state

    @property
    def write_address(self) -> int:
        """The colour that the next component goes to, 0 to 255."""
        return self._write_at // 3

    def set_read_address(self, colour: int) -> None:
        """Read from the first component of ``colour`` on."""
        self._read_at, self._state = 3 * colour, _READING

    def set_write_address(self, colour: int) -> None:
        """Write from the first component of ``colour`` on."""
        self._write_at, self._state = 3 * colour, _WRITING

    def read(self) -> int:
        """The next component."""
        value = self._components[self._read_at]
        self._read_at = (self._read_at + 1) % len(self._components)
        return value

    def write(self, value: int) -> None:
        """Set the next component."""
        self._components[self._write_at] = value
        self._write_at = (self._write_at + 1) % len(self._components)

    def tables(self) -> tuple[bytes, bytes, bytes]:
        """Red, green and blue of each pixel value in 8 bits, for ``bytes.translate``."""
        components = bytes(self._components)
        if not self.wide:
            components = components.translate(_WIDEN_6_BITS)
        looked_up = [value & self.mask for value in range(COLOURS)]
        red, green, blue = (bytes(components[3 * i + part] for i in looked_up) for part in range(3))
        return red, green, blue

    def save_state(self) -> dict[str, Any]:
        """Colours and counters."""
        return {
            "components": bytes(self._components),
            "mask": self.mask,
            "wide": self.wide,
            "state": self._state,
            "read_at": self._read_at,
            "write_at": self._write_at,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._components[:] = state["components"]
        self.mask = state["mask"]
        self.wide = state["wide"]
        self._state = state["state"]
        self._read_at = state["read_at"]
        self._write_at = state["write_at"]
