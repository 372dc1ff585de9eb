"""The reset control register at port 0xcf9, which the FADT also names as its RESET_REG.

Reference: Intel ICH9 datasheet (316972) §13.7.5 "RST_CNT".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

RESET_PORT = 0xCF9
RESET_VALUE = 0x0E
"""What FADT.RESET_VALUE should be: full reset, system reset, reset CPU."""
RST_CPU = 0x04
WRITABLE = 0x0E


class ResetRegister:
    """One byte; a zero-to-one change of RST_CPU resets the machine.

    It lies inside the PCI configuration ports, so ``PciConfigPorts`` forwards to it.

    Args:
        on_reset: Called on the vCPU's thread.
    """

    def __init__(self, on_reset: Callable[[], None]) -> None:
        self._on_reset = on_reset
        self._value = 0

    def pio_read(self, offset: int, size: int) -> int:
        """The bits last written; RST_CPU reads as zero."""
        return self._value & ~RST_CPU

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Bits 1 to 3 are writable."""
        rising = value & ~self._value & RST_CPU
        self._value = value & WRITABLE
        if rising:
            self._on_reset()

    def reset(self) -> None:
        """Power-on state."""
        self._value = 0

    def save_state(self) -> dict[str, Any]:
        """The register."""
        return {"value": self._value}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._value = state["value"]
