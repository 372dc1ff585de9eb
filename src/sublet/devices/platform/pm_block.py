"""The ACPI register block of a chipset: PM1, the PM timer, GPE0, as one range of ports that firmware places.

Reference: Intel PIIX4 (290562) §7.2 "Power Management I/O Space"; Intel ICH9 (316972) §13.8.3 "Power
Management I/O Registers".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sublet.hw import Clock, PioDevice

PM_TIMER_HZ: Final = 3_579_545
PM_TIMER_OFFSET: Final = 8
ICH9_SMI_ENABLE_OFFSET: Final = 0x30


class PmTimer:
    """32-bit counter at 3.58 MHz (ACPI 6.5 §4.8.2.1 "Power Management Timer").

    The core answers the block's usual place, port 0x608, itself; this one is for any other.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def pio_read(self, offset: int, size: int) -> int:
        """The counter's bytes."""
        ticks = self._clock.now_ns() * PM_TIMER_HZ // 1_000_000_000 & 0xFFFF_FFFF
        return ticks >> 8 * offset & (1 << 8 * size) - 1

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Read-only."""


class Part(NamedTuple):
    """A device inside the block."""

    offset: int
    length: int
    device: PioDevice


class PmBlock:
    """Ports relative to the block's base; what lies between the parts reads as zero."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = tuple(parts)

    def pio_read(self, offset: int, size: int) -> int:
        """Read the part that the access begins in."""
        for part in self._parts:
            if part.offset <= offset < part.offset + part.length:
                return part.device.pio_read(offset - part.offset, size)
        return 0

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Write the part that the access begins in."""
        for part in self._parts:
            if part.offset <= offset < part.offset + part.length:
                part.device.pio_write(offset - part.offset, size, value)
                return

    def save_state(self) -> dict[str, Any]:
        """No state of its own."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """No state of its own."""

    def reset(self) -> None:
        """Nothing to reset."""
