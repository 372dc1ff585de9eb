"""System control port A at 0x92: the A20 gate and the fast reset.

Reference: IBM PS/2 Hardware Interface Technical Reference (1988) "System Control Port A".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

PORT92: Final = 0x92
FAST_RESET: Final = 1
A20_GATE: Final = 2


class Port92:
    """One byte.

    Args:
        on_reset: Called when bit 0 rises, on the vCPU's thread.
        on_a20: Called with the gate's state when it changes.
    """

    def __init__(self, on_reset: Callable[[], None], on_a20: Callable[[bool], None]) -> None:
        self._on_reset = on_reset
        self._on_a20 = on_a20
        self._value = A20_GATE

    def pio_read(self, offset: int, size: int) -> int:
        """The byte; the reset bit reads as zero."""
        return self._value

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Bit 0 resets, bit 1 is the gate."""
        changed = (value ^ self._value) & A20_GATE
        self._value = value & A20_GATE
        if changed:
            self._on_a20(bool(value & A20_GATE))
        if value & FAST_RESET:
            self._on_reset()

    def set_a20(self, enabled: bool) -> None:
        """Somebody else, the keyboard controller, moved the gate."""
        self._value = A20_GATE if enabled else 0

    def reset(self) -> None:
        """Power-on state: the gate is open, as the boards of today have it."""
        self._value = A20_GATE

    def save_state(self) -> dict[str, Any]:
        """The byte."""
        return {"value": self._value}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._value = state["value"]
