"""Feature bits and configuration layout of the console.

Reference: virtio 1.2 §5.3 "Console Device".
"""

from __future__ import annotations

import struct

DEVICE_TYPE = 3
PCI_CLASS = 0x078000
F_SIZE = 1 << 0
F_EMERG_WRITE = 1 << 2
RECEIVE_QUEUE, TRANSMIT_QUEUE = 0, 1
EMERGENCY_OFFSET = 8

_LAYOUT = struct.Struct("<HHII")


def pack_config(columns: int, rows: int) -> bytes:
    """``struct virtio_console_config``: size in characters, one port, the emergency field reads zero."""
    return _LAYOUT.pack(columns, rows, 1, 0)
