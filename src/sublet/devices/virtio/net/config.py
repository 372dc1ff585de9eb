"""Feature bits, packet header and configuration layout of the network device.

Reference: virtio 1.2 §5.1 "Network Device".
"""

from __future__ import annotations

import struct

DEVICE_TYPE = 1
PCI_CLASS = 0x020000
F_MTU = 1 << 3
F_MAC = 1 << 5
F_MRG_RXBUF = 1 << 15
F_STATUS = 1 << 16
STATUS_LINK_UP = 1
RECEIVE_QUEUE, TRANSMIT_QUEUE = 0, 1

HEADER_SIZE = 12
"""``struct virtio_net_hdr`` with num_buffers, which VERSION_1 always has (§5.1.6.1)."""
_HEADER = struct.Struct("<BBHHHHH")
_LAYOUT = struct.Struct("<6sHHH")


def pack_header(buffers: int) -> bytes:
    """A receive header without offloads: flags, gso, header length, gso size, checksum start and offset."""
    return _HEADER.pack(0, 0, 0, 0, 0, 0, buffers)


def pack_config(mac: bytes, link_up: bool, mtu: int) -> bytes:
    """``struct virtio_net_config`` up to mtu; one queue pair."""
    return _LAYOUT.pack(mac, STATUS_LINK_UP if link_up else 0, 1, mtu)
