"""Sense data: why a packet command ended as it did.

Reference: SPC-3 r23 §4.5.3 "Fixed format sense data"; MMC-6 r2g annex F "Error reporting and sense codes".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

FIXED_SIZE = 18


class Sense(NamedTuple):
    """Sense key, additional sense code and its qualifier."""

    key: int
    code: int
    qualifier: int

    def fixed(self) -> bytes:
        """Fixed format, 18 bytes, of the current command."""
        return struct.pack(">BBB4xB4xBB4x", 0x70, 0, self.key, FIXED_SIZE - 8, self.code, self.qualifier)


NO_SENSE = Sense(0, 0, 0)
NO_MEDIUM = Sense(2, 0x3A, 0)
NO_MEDIUM_TRAY_OPEN = Sense(2, 0x3A, 2)
READ_ERROR = Sense(3, 0x11, 0)
INVALID_COMMAND = Sense(5, 0x20, 0)
ADDRESS_OUT_OF_RANGE = Sense(5, 0x21, 0)
INVALID_FIELD = Sense(5, 0x24, 0)
ILLEGAL_MODE = Sense(5, 0x64, 0)
REMOVAL_PREVENTED = Sense(5, 0x53, 2)
MEDIUM_CHANGED = Sense(6, 0x28, 0)
POWER_ON = Sense(6, 0x29, 0)


class CheckCondition(Exception):
    """A packet command failed."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(str(sense))
        self.sense = sense
