"""Which interrupt line leads where."""

from __future__ import annotations

from typing import Final

PCI_GSI_BASE: Final = 16
PCI_GSI_COUNT: Final = 8


def pci_gsi(slot: int, pin: int) -> int:
    """The GSI of a PCI interrupt pin (0 is INTA) of a slot on bus 0; see docs/design/pci.md."""
    return PCI_GSI_BASE + (slot + pin) % PCI_GSI_COUNT
