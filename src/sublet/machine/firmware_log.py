"""What firmware prints on its debug port, kept for who asks for it."""

from __future__ import annotations

import os
import sys
from typing import Final

_VARIABLE: Final = "SUBLET_FIRMWARE_LOG"
LIMIT: Final = 4 << 20
"""Bytes shown in one power cycle; the rest is dropped."""


class FirmwareLog:
    """Shows the bytes on standard error where the environment has ``SUBLET_FIRMWARE_LOG=1``."""

    def __init__(self) -> None:
        self._left = LIMIT if os.environ.get(_VARIABLE) == "1" else 0

    def write(self, data: bytes) -> None:
        """Show some bytes, as far as the limit allows."""
        if self._left <= 0:
            return
        self._left -= len(data)
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()
