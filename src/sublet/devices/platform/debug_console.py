"""The debug port of virtual machines' firmware, 0x402: bytes that SeaBIOS and OVMF print there.

Reference: QEMU "isa-debugcon"; SeaBIOS src/fw/paravirt.c, which looks for the value that a read gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

DEBUG_PORT: Final = 0x402
PRESENT: Final = 0xE9


class DebugConsole:
    """Takes bytes, one a write.

    Args:
        write: Receives them; what it keeps is its business to bound.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def pio_read(self, offset: int, size: int) -> int:
        """Says that somebody listens."""
        return PRESENT

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Pass a byte on."""
        self._write(bytes((value & 0xFF,)))

    def reset(self) -> None:
        """No state."""

    def save_state(self) -> dict[str, Any]:
        """No state."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """No state."""
