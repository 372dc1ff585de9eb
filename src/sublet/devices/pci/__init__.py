"""Conventional PCI with memory-mapped configuration: one root bus, type 0 functions, INTx and MSI-X."""

from __future__ import annotations

from sublet.devices.pci.config_space import ConfigSpace
from sublet.devices.pci.device import Bar, BarKind, PciDevice
from sublet.devices.pci.host import (
    CONFIG_PORT,
    CONFIG_PORT_COUNT,
    PciConfigPorts,
    PciEcam,
    PciHost,
    PinRouter,
    Window,
)
from sublet.devices.pci.intx import INTX_FIRST_GSI, INTX_GSI_COUNT, IntxRouter, intx_gsi
from sublet.devices.pci.msix import MsixTable

__all__ = [
    "CONFIG_PORT",
    "CONFIG_PORT_COUNT",
    "INTX_FIRST_GSI",
    "INTX_GSI_COUNT",
    "Bar",
    "BarKind",
    "ConfigSpace",
    "IntxRouter",
    "MsixTable",
    "PciConfigPorts",
    "PciDevice",
    "PciEcam",
    "PciHost",
    "PinRouter",
    "Window",
    "intx_gsi",
]
