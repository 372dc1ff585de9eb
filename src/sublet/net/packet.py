"""A packet: the 12-byte ``struct virtio_net_hdr_v1`` and an Ethernet frame, in one ``bytes``.

The header says what is still to be done to the frame: fill in a checksum, cut it into segments. It is
the first thing in the buffer, as in virtio, TAP (IFF_VNET_HDR with a 12-byte header) and our switch, so
that a packet crosses all of them without being copied for its header's sake.

Reference: virtio 1.2 §5.1.6 "Device Operation"; Linux 6.1 include/uapi/linux/if_tun.h.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

HEADER_SIZE: Final = 12
ETHERNET_HEADER_SIZE: Final = 14
MIN_FRAME_SIZE: Final = 14
"""Bytes of an Ethernet header; frames come without preamble, padding and checksum."""
MAX_FRAME_SIZE: Final = 65550
"""Bytes: an Ethernet header, a VLAN tag and the largest IPv4 packet, rounded up."""
MIN_PACKET_SIZE: Final = HEADER_SIZE + MIN_FRAME_SIZE
MAX_PACKET_SIZE: Final = HEADER_SIZE + MAX_FRAME_SIZE

NO_OFFLOAD: Final = bytes(10) + b"\1\0"
"""The header of a complete frame: nothing to do, in one buffer."""

NEEDS_CHECKSUM: Final = 1
DATA_VALID: Final = 2
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_UDP: Final = 3
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80

_HEADER = struct.Struct("<BBHHHHH")


class Offload(enum.IntFlag):
    """What an end takes undone from the other; the values are Linux's TUN_F_*."""

    NONE = 0
    CHECKSUM = 0x01
    """Frames whose TCP or UDP checksum is not filled in; every other bit needs it."""
    TSO4 = 0x02
    """TCP over IPv4 in frames up to 64 KiB."""
    TSO6 = 0x04
    """TCP over IPv6."""
    TSO_ECN = 0x08
    """Such frames with CWR set, which belongs to their first segment only."""
    USO4 = 0x20
    """UDP datagrams of one flow, one after the other in a frame, over IPv4."""
    USO6 = 0x40
    """The same over IPv6."""


ALL_OFFLOADS: Final = (
    Offload.CHECKSUM | Offload.TSO4 | Offload.TSO6 | Offload.TSO_ECN | Offload.USO4 | Offload.USO6
)


class PacketHeader(NamedTuple):
    """``struct virtio_net_hdr_v1``. Offsets count from the frame's first byte."""

    flags: int = 0
    gso_type: int = GSO_NONE
    header_length: int = 0
    """Bytes of Ethernet, IP and TCP headers: a hint that nobody may trust."""
    gso_size: int = 0
    """Payload bytes of each segment."""
    checksum_start: int = 0
    checksum_offset: int = 0
    """From ``checksum_start`` to the checksum's field, which holds the sum of the pseudo header."""
    buffers: int = 1

    def pack(self) -> bytes:
        """The 12 bytes."""
        return _HEADER.pack(*self)


def unpack_header(packet: bytes) -> PacketHeader:
    """The header of a packet of at least 12 bytes."""
    return PacketHeader(*_HEADER.unpack_from(packet))


def from_frame(frame: bytes) -> bytes:
    """The packet of a complete frame."""
    return NO_OFFLOAD + frame
