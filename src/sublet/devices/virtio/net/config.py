"""Feature bits, configuration layout and control commands of the network device.

Reference: virtio 1.2 §5.1 "Network Device".
"""

from __future__ import annotations

import struct
from typing import Final

from sublet.net import Offload

DEVICE_TYPE: Final = 1
PCI_CLASS: Final = 0x020000

F_CSUM: Final = 1 << 0
F_GUEST_CSUM: Final = 1 << 1
F_CTRL_GUEST_OFFLOADS: Final = 1 << 2
F_MTU: Final = 1 << 3
F_MAC: Final = 1 << 5
F_GUEST_TSO4: Final = 1 << 7
F_GUEST_TSO6: Final = 1 << 8
F_GUEST_ECN: Final = 1 << 9
F_HOST_TSO4: Final = 1 << 11
F_HOST_TSO6: Final = 1 << 12
F_HOST_ECN: Final = 1 << 13
F_MRG_RXBUF: Final = 1 << 15
F_STATUS: Final = 1 << 16
F_CTRL_VQ: Final = 1 << 17
F_CTRL_RX: Final = 1 << 18
F_CTRL_VLAN: Final = 1 << 19
F_CTRL_RX_EXTRA: Final = 1 << 20
F_GUEST_ANNOUNCE: Final = 1 << 21
F_MQ: Final = 1 << 22
F_CTRL_MAC_ADDR: Final = 1 << 23
F_GUEST_USO4: Final = 1 << 54
F_GUEST_USO6: Final = 1 << 55
F_HOST_USO: Final = 1 << 56

GUEST_OFFLOADS: Final = {
    F_GUEST_CSUM: Offload.CHECKSUM,
    F_GUEST_TSO4: Offload.TSO4,
    F_GUEST_TSO6: Offload.TSO6,
    F_GUEST_ECN: Offload.TSO_ECN,
    F_GUEST_USO4: Offload.USO4,
    F_GUEST_USO6: Offload.USO6,
}
"""What each GUEST feature lets the device leave undone."""
HOST_OFFLOADS: Final = {
    F_CSUM: Offload.CHECKSUM,
    F_HOST_TSO4: Offload.TSO4,
    F_HOST_TSO6: Offload.TSO6,
    F_HOST_ECN: Offload.TSO_ECN,
    F_HOST_USO: Offload.USO4 | Offload.USO6,
}
"""What each feature lets the driver leave undone."""

STATUS_LINK_UP: Final = 1
STATUS_ANNOUNCE: Final = 2
LEGACY_HEADER_SIZE: Final = 10
"""Without num_buffers, when neither VERSION_1 nor MRG_RXBUF was negotiated (§5.1.6.1)."""
FULL_BUFFER_SIZE: Final = 1526
"""Bytes that every receive buffer has at least, unless buffers are merged (§5.1.6.3.1)."""

CTRL_RX, CTRL_MAC, CTRL_VLAN, CTRL_ANNOUNCE, CTRL_MQ, CTRL_OFFLOADS = range(6)
CTRL_OK: Final = b"\0"
CTRL_ERROR: Final = b"\1"

_LAYOUT = struct.Struct("<6sHHH")


def pack_config(mac: bytes, status: int, pairs: int, mtu: int) -> bytes:
    """``struct virtio_net_config`` up to mtu."""
    return _LAYOUT.pack(mac, status, pairs, mtu)


def guest_offloads(features: int) -> Offload:
    """What the driver takes undone by the features negotiated; nothing without checksums (§5.1.3.1)."""
    if not features & F_GUEST_CSUM:
        return Offload.NONE
    offloads = Offload.NONE
    for feature, offload in GUEST_OFFLOADS.items():
        if features & feature:
            offloads |= offload
    return offloads


def host_features(offloads: Offload) -> int:
    """The features to offer for a sink that takes ``offloads`` undone."""
    return sum(feature for feature, wanted in HOST_OFFLOADS.items() if offloads & wanted == wanted)
