"""Devices at the fixed ports of a PC."""

from __future__ import annotations

from sublet.devices.legacy.serial import COM1_GSI, COM1_PORT, SERIAL_PORT_COUNT, Serial

__all__ = ["COM1_GSI", "COM1_PORT", "SERIAL_PORT_COUNT", "Serial"]
