"""Power, reset and panic: how the guest tells the machine that it is done."""

from __future__ import annotations

from sublet.devices.platform.acpi_pm import (
    GPE0_PORT,
    GPE0_PORT_COUNT,
    PM1_PORT,
    PM1_PORT_COUNT,
    SCI_GSI,
    AcpiPm,
    Gpe0,
)
from sublet.devices.platform.pvpanic import PVPANIC_PORT, PVPANIC_PORT_COUNT, PvPanic
from sublet.devices.platform.reset_register import RESET_PORT, RESET_VALUE, ResetRegister

__all__ = [
    "GPE0_PORT",
    "GPE0_PORT_COUNT",
    "PM1_PORT",
    "PM1_PORT_COUNT",
    "PVPANIC_PORT",
    "PVPANIC_PORT_COUNT",
    "RESET_PORT",
    "RESET_VALUE",
    "SCI_GSI",
    "AcpiPm",
    "Gpe0",
    "PvPanic",
    "ResetRegister",
]
