"""INTx pins to GSIs. Lines are shared: a GSI is high while any pin wired to it is.

The rule, which the DSDT's ``_PRT`` repeats: pin p (INTA = 0) of slot n drives
GSI 16 + (n + p) % 8, level-triggered, active high (docs/design/pci.md).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from sublet.hw import IrqLine

INTX_FIRST_GSI = 16
INTX_GSI_COUNT = 8


def intx_gsi(slot: int, pin: int) -> int:
    """The GSI, 16 to 23, of ``pin`` (0 for INTA to 3 for INTD) of ``slot`` (0 to 31)."""
    return INTX_FIRST_GSI + (slot + pin) % INTX_GSI_COUNT


class IntxRouter:
    """Combines device pins into lines. Any thread.

    Args:
        lines: Eight lines: GSI 16 to 23.
    """

    def __init__(self, lines: Sequence[IrqLine]) -> None:
        self._lines = tuple(lines)
        self._asserted = [0] * INTX_GSI_COUNT  # a bit a slot and pin
        self._lock = threading.Lock()

    def pin(self, slot: int, pin: int) -> Callable[[bool], None]:
        """The wire of one pin."""
        index = intx_gsi(slot, pin) - INTX_FIRST_GSI
        bit = 1 << (4 * slot + pin)
        return lambda level: self._set(index, bit, level)

    def _set(self, index: int, bit: int, level: bool) -> None:
        with self._lock:
            before = self._asserted[index]
            after = before | bit if level else before & ~bit
            self._asserted[index] = after
            if bool(before) != bool(after):
                self._lines[index].set_level(bool(after))
