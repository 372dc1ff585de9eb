"""How software raises an SMI: the APM ports, and ICH9's SMI_EN and SMI_STS.

Reference: Intel PIIX4 (290562) §4.2 "I/O Space Registers", "APM Registers", "DEVACTB"; Intel ICH9 (316972)
§13.8.3 "Power Management I/O Registers", "SMI_EN", "SMI_STS", and §13.8.1 "GEN_PMCON_1".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

APM_PORT: Final = 0xB2
APM_PORT_COUNT: Final = 2
"""Command at +0, a byte for software to use at +1."""

GLOBAL_ENABLE: Final = 1 << 0
APMC_ENABLE: Final = 1 << 5
_STATUS_APM: Final = 1 << 5
_ALL: Final = 0xFFFF_FFFF


class ApmPorts:
    """Two bytes.

    Args:
        on_command: Called with each command, on the vCPU's thread.
    """

    def __init__(self, on_command: Callable[[int], None]) -> None:
        self._on_command = on_command
        self._bytes = bytearray(APM_PORT_COUNT)

    def pio_read(self, offset: int, size: int) -> int:
        """What was written last."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Keep the bytes; the command's acts."""
        data = value.to_bytes(size, "little")[: APM_PORT_COUNT - offset]
        self._bytes[offset : offset + len(data)] = data
        if offset == 0:
            self._on_command(self._bytes[0])

    def reset(self) -> None:
        """Both zero."""
        self._bytes[:] = bytes(APM_PORT_COUNT)

    def save_state(self) -> dict[str, Any]:
        """The bytes."""
        return {"bytes": bytes(self._bytes)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._bytes[:] = state["bytes"]


class SmiControl:
    """SMI_EN and SMI_STS of ICH9; of their events only the APM command happens here."""

    def __init__(self) -> None:
        self._enable = 0
        self._status = 0
        self._locked = False

    def lock(self) -> None:
        """The global enable bit keeps its value until reset."""
        self._locked = True

    def take_command(self) -> bool:
        """An APM command has come; whether it raises an SMI."""
        wanted = GLOBAL_ENABLE | APMC_ENABLE
        raises = self._enable & wanted == wanted
        if raises:
            self._status |= _STATUS_APM
        return raises

    def pio_read(self, offset: int, size: int) -> int:
        """Enables, then status."""
        return (self._enable | self._status << 32) >> 8 * offset & (1 << 8 * size) - 1

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Enables are plain, status bits clear on one."""
        mask = (1 << 8 * size) - 1 << 8 * offset
        bits = value << 8 * offset & mask
        writable = mask & _ALL & ~(GLOBAL_ENABLE if self._locked else 0)
        self._enable = self._enable & ~writable | bits & writable
        self._status &= ~(bits >> 32)

    def reset(self) -> None:
        """Nothing enabled, unlocked."""
        self._enable = self._status = 0
        self._locked = False

    def save_state(self) -> dict[str, Any]:
        """Both registers and the lock."""
        return {"enable": self._enable, "status": self._status, "locked": self._locked}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._enable, self._status, self._locked = state["enable"], state["status"], state["locked"]


class SmiAlwaysSetUp:
    """SMI_EN and SMI_STS where the engine has no system-management mode.

    Deviation: SMI on a write to port 0xb2 counts as set up from the start, so that firmware leaves it alone.
    """

    def pio_read(self, offset: int, size: int) -> int:
        """Enabled, and nothing pending."""
        return (GLOBAL_ENABLE | APMC_ENABLE) >> 8 * offset & (1 << 8 * size) - 1

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Locked."""
