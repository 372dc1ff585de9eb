"""ACPI fixed hardware: the PM1 event and control blocks with power button and sleep states, and GPE0.

Reference: ACPI 6.5 §4.8.3 "ACPI Register Model", §4.8.2.2 "Power Button".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from sublet.hw import IrqLine

PM1_PORT = 0x600
PM1_PORT_COUNT = 6
"""PM1a_STS at +0, PM1a_EN at +2, PM1a_CNT at +4, 16 bits each."""
GPE0_PORT = 0x620
GPE0_PORT_COUNT = 4
SCI_GSI = 9

STS_PWRBTN = 1 << 8
STS_WRITABLE = 0xCF31
"""Status bits that a one clears: TMR, BM, GBL, PWRBTN, SLPBTN, RTC, PCIEXP_WAKE, WAK."""
EN_WRITABLE = 0x4721
CNT_SCI_EN = 1
CNT_SLP_TYP_SHIFT = 10
CNT_SLP_EN = 1 << 13
CNT_WRITABLE = 0x1C03
SLP_TYP_S3 = 1
SLP_TYP_S5 = 5
"""What the DSDT's ``\\_S3`` and ``\\_S5`` packages must name."""
SLP_TYP_SOFT_OFF = 0
"""PIIX4's soft off (Intel PIIX4, 290562, "PMCNTRL"), which SeaBIOS's APM and OVMF name on either chipset."""
STS_RTC = 1 << 10
STS_WAKE = 1 << 15


class AcpiPm:
    """PM1a event and control registers at ``PM1_PORT``; six ports, byte and word access.

    Args:
        sci: The SCI line (level, active high).
        on_poweroff: Called when SLP_EN is written with SLP_TYP of S5 or soft off, on the vCPU's thread.
        on_suspend: The same with that of S3; None: the machine does not sleep.
    """

    def __init__(
        self, sci: IrqLine, on_poweroff: Callable[[], None], on_suspend: Callable[[], None] | None = None
    ) -> None:
        self._on_suspend = on_suspend
        self._sci = sci
        self._on_poweroff = on_poweroff
        self._lock = threading.Lock()
        self._status = 0
        self._enable = 0
        # Precondition: the FADT has SMI_CMD = 0, so the hardware is in ACPI mode from the start.
        self._control = CNT_SCI_EN

    def press_power_button(self) -> None:
        """Latch PWRBTN_STS; an ACPI guest shuts down if it wants to."""
        with self._lock:
            self._status |= STS_PWRBTN
            self._update_sci()

    def pio_read(self, offset: int, size: int) -> int:
        """Registers as a little-endian byte string; past the block reads as zero."""
        with self._lock:
            block = self._status | self._enable << 16 | self._control << 32
        return block >> (8 * offset) & ((1 << (8 * size)) - 1)

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Status bits clear on one, SLP_EN is write-only, all others are plain."""
        mask = ((1 << (8 * size)) - 1) << (8 * offset)
        bits = value << (8 * offset) & mask
        with self._lock:
            self._status &= ~(bits & STS_WRITABLE)
            self._enable = _merge(self._enable, bits >> 16, mask >> 16 & EN_WRITABLE)
            self._control = _merge(self._control, bits >> 32, mask >> 32 & CNT_WRITABLE) | CNT_SCI_EN
            self._update_sci()
        if bits >> 32 & CNT_SLP_EN:
            self._sleep(self._control >> CNT_SLP_TYP_SHIFT & 7)

    def _sleep(self, state: int) -> None:
        if state in (SLP_TYP_S5, SLP_TYP_SOFT_OFF):
            self._on_poweroff()
        elif state == SLP_TYP_S3 and self._on_suspend is not None:
            self._on_suspend()

    def wake(self, reason: int) -> None:
        """Say that the machine has slept, and what woke it: a status bit, or 0."""
        with self._lock:
            self._status |= STS_WAKE | reason
            self._update_sci()

    def _update_sci(self) -> None:
        self._sci.set_level(bool(self._status & self._enable))

    def reset(self) -> None:
        """Power-on state."""
        with self._lock:
            self._status, self._enable, self._control = 0, 0, CNT_SCI_EN
            self._update_sci()

    def save_state(self) -> dict[str, Any]:
        """The three registers."""
        with self._lock:
            return {"status": self._status, "enable": self._enable, "control": self._control}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        with self._lock:
            self._status, self._enable = state["status"], state["enable"]
            self._control = state["control"]
            self._update_sci()


class Gpe0:
    """The general-purpose event block: status bits, then as many enable bits. No event is wired yet.

    Args:
        register_size: Bytes of each of the two registers: 2 on PIIX4, 8 on ICH9.
    """

    def __init__(self, register_size: int = 2) -> None:
        self._bits = 8 * register_size
        self._mask = (1 << self._bits) - 1
        self._status = 0
        self._enable = 0

    def pio_read(self, offset: int, size: int) -> int:
        """Status in the first half, enable in the second."""
        return (self._status | self._enable << self._bits) >> (8 * offset) & ((1 << (8 * size)) - 1)

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Status bits clear on one; enable bits are plain."""
        mask = ((1 << (8 * size)) - 1) << (8 * offset)
        bits = value << (8 * offset) & mask
        self._status &= ~(bits & self._mask)
        self._enable = _merge(self._enable, bits >> self._bits, mask >> self._bits & self._mask)

    def reset(self) -> None:
        """Power-on state."""
        self._status = self._enable = 0

    def save_state(self) -> dict[str, Any]:
        """Both registers."""
        return {"status": self._status, "enable": self._enable}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._status, self._enable = state["status"], state["enable"]


def _merge(old: int, new: int, mask: int) -> int:
    return old & ~mask | new & mask
