"""Devices at the fixed ports of a PC."""

from __future__ import annotations

from sublet.devices.legacy.i8042 import COMMAND_PORT, DATA_PORT, I8042, KEYBOARD_GSI, MOUSE_GSI
from sublet.devices.legacy.keys import KEYS
from sublet.devices.legacy.serial import COM1_GSI, COM1_PORT, SERIAL_PORT_COUNT, Serial

__all__ = [
    "COM1_GSI",
    "COM1_PORT",
    "COMMAND_PORT",
    "DATA_PORT",
    "I8042",
    "KEYBOARD_GSI",
    "KEYS",
    "MOUSE_GSI",
    "SERIAL_PORT_COUNT",
    "Serial",
]
