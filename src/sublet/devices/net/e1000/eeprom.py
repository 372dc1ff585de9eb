"""The serial EEPROM: 64 words behind a Microwire bus that software drives bit by bit, or behind EERD.

Reference: Intel 317453-006 §5.3 "EEPROM Interface", §5.6 "EEPROM Address Map", §13.4.3, §13.4.4.
"""

from __future__ import annotations

import struct
from typing import Any, Final

WORDS: Final = 64
_CHECKSUM_WORD: Final = 0x3F
_CHECKSUM: Final = 0xBABA
"""What all words add up to."""
EECD_SK, EECD_CS, EECD_DI, EECD_DO, EECD_REQ, EECD_GNT, EECD_PRES = 1, 2, 4, 8, 0x40, 0x80, 0x100
_EECD_WRITABLE: Final = EECD_SK | EECD_CS | EECD_DI | EECD_REQ
_EERD_START, _EERD_DONE = 1 << 0, 1 << 4
_READ: Final = 0b110
"""Start bit and opcode."""
_COMMAND_BITS: Final = 9
"""Start, two of opcode, six of address."""


def make_content(mac: bytes, device_id: int, vendor_id: int) -> list[int]:
    """The words of a card with address ``mac``, the checksum among them."""
    words = [0] * WORDS
    words[0:3] = struct.unpack("<3H", mac)
    words[0x0A:0x0F] = [0x46AA, 0x001E, vendor_id, device_id, vendor_id]
    words[_CHECKSUM_WORD] = (_CHECKSUM - sum(words[:_CHECKSUM_WORD])) & 0xFFFF
    return words


class Eeprom:
    """The EEPROM and its two registers. Writing words is ignored, as with a protected part."""

    def __init__(self, words: list[int]) -> None:
        self._words = words
        self._eerd = 0
        self.reset()

    def reset(self) -> None:
        """Power-on state of the bus."""
        self._pins = 0
        self._shifted_in = 0
        self._count = 0
        self._output = 0
        self._output_bits = 0

    def read_control(self) -> int:
        """EECD: a request is granted at once; data out floats high."""
        bit = self._output >> max(self._output_bits - 1, 0) & 1 if self._output_bits else 1
        granted = EECD_GNT if self._pins & EECD_REQ else 0
        return self._pins | granted | EECD_PRES | (EECD_DO if bit else 0)

    def write_control(self, value: int) -> None:
        """EECD: a rising clock shifts a bit in, or the next bit out."""
        before, self._pins = self._pins, value & _EECD_WRITABLE
        if not self._pins & EECD_CS:
            self._shifted_in = self._count = self._output_bits = 0
        elif self._pins & EECD_SK and not before & EECD_SK:
            self._clock()

    def _clock(self) -> None:
        if self._count >= _COMMAND_BITS:
            self._output_bits = max(self._output_bits - 1, 0)
            return
        bit = 1 if self._pins & EECD_DI else 0
        if not self._count and not bit:
            return  # leading zeros come before the start bit
        self._shifted_in = self._shifted_in << 1 | bit
        self._count += 1
        if self._count == _COMMAND_BITS and self._shifted_in >> 6 == _READ:
            # A zero comes before the sixteen bits.
            self._output, self._output_bits = self._words[self._shifted_in & 0x3F], 17

    def read_register(self) -> int:
        """EERD."""
        return self._eerd

    def write_register(self, value: int) -> None:
        """EERD: a start reads the word at once."""
        if value & _EERD_START:
            address = value >> 8 & 0xFF
            word = self._words[address] if address < WORDS else 0xFFFF
            self._eerd = word << 16 | address << 8 | _EERD_DONE
        else:
            self._eerd = value & 0xFF00

    def save_state(self) -> dict[str, Any]:
        """The bus."""
        names = ("pins", "shifted_in", "count", "output", "output_bits", "eerd")
        return {name: getattr(self, f"_{name}") for name in names}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        for name, value in state.items():
            setattr(self, f"_{name}", value)
