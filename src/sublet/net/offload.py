"""Doing in software what an end does not take undone: checksums and segmentation.

What a header may get wrong, and what happens: offsets past the frame, a segment size of zero, or a frame
that is not of the protocol that its header names make no packets at all. The frame is lost, as a bad one
is on a wire.

Reference: virtio 1.2 §5.1.6.2 "Packet Transmission"; RFC 9293 §3.1 "Header Format"; RFC 3168 §6.1.2.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from sublet.net import packet as p
from sublet.net.checksum import internet_checksum, ones_complement_sum
from sublet.net.packet import Offload, PacketHeader

_GSO_OFFLOADS: Final = {
    p.GSO_TCPV4: Offload.TSO4,
    p.GSO_TCPV6: Offload.TSO6,
}
_ETHERTYPE_VLAN: Final = (0x8100, 0x88A8)
_ETHERTYPE_IPV4: Final = 0x0800
_ETHERTYPE_IPV6: Final = 0x86DD
_TCP, _UDP = 6, 17
_FIN_PSH: Final = 0x09
_CWR: Final = 0x80
_MAX_SEGMENTS: Final = 2048
"""Of one frame: a segment size below 32 bytes is a flood, not a connection."""


class Layout(NamedTuple):
    """Where the headers of a TCP or UDP frame end, in bytes from its start."""

    network: int
    transport: int
    payload: int
    version: int
    """4 or 6."""
    protocol: int


def needed_offloads(header: PacketHeader, version: int = 4) -> Offload:
    """What an end must take undone to take a packet with this header."""
    needed = Offload.CHECKSUM if header.flags & p.NEEDS_CHECKSUM else Offload.NONE
    kind = header.gso_type & ~p.GSO_ECN
    if kind == p.GSO_UDP_L4:
        needed |= Offload.USO6 if version == 6 else Offload.USO4
    elif kind != p.GSO_NONE:
        needed |= _GSO_OFFLOADS.get(kind, Offload.NONE)
    return needed | Offload.TSO_ECN if header.gso_type & p.GSO_ECN else needed


def complete(packet: bytes, accepted: Offload) -> list[bytes]:
    """The packets that an end which takes ``accepted`` is to be given for one packet; none if it is bad."""
    if not packet[0] & p.NEEDS_CHECKSUM and not packet[1]:
        return [packet]
    header = p.unpack_header(packet)
    if header.gso_type == p.GSO_NONE:
        return [packet] if accepted & Offload.CHECKSUM else _fill_checksum(packet, header)
    layout = find_layout(packet[p.HEADER_SIZE : p.HEADER_SIZE + 128])
    if layout is None or header.gso_size == 0 or not _agrees(header, layout):
        return []
    needed = needed_offloads(header, layout.version)
    if needed & accepted == needed:
        return [packet]
    return _segments(packet[p.HEADER_SIZE :], header, layout)


def _fill_checksum(packet: bytes, header: PacketHeader) -> list[bytes]:
    start = p.HEADER_SIZE + header.checksum_start
    field = start + header.checksum_offset
    if field + 2 > len(packet):
        return []
    checksum = internet_checksum(memoryview(packet)[start:]) or 0xFFFF
    return [
        b"".join(
            (p.NO_OFFLOAD, packet[p.HEADER_SIZE : field], checksum.to_bytes(2, "big"), packet[field + 2 :])
        )
    ]


def find_layout(frame: bytes) -> Layout | None:
    """The layers of a TCP or UDP frame, or None when it is neither; ``frame`` may be its first 128 bytes.

    IPv6 extension headers are not followed: nothing that cuts segments makes them.
    """
    network, ethertype = p.ETHERNET_HEADER_SIZE, int.from_bytes(frame[12:14], "big")
    if ethertype in _ETHERTYPE_VLAN:
        network, ethertype = network + 4, int.from_bytes(frame[16:18], "big")
    if ethertype == _ETHERTYPE_IPV4 and len(frame) >= network + 20:
        transport = network + 4 * (frame[network] & 15)
        return _with_transport(frame, network, transport, 4, frame[network + 9])
    if ethertype == _ETHERTYPE_IPV6 and len(frame) >= network + 40:
        return _with_transport(frame, network, network + 40, 6, frame[network + 6])
    return None


def _with_transport(frame: bytes, network: int, transport: int, version: int, protocol: int) -> Layout | None:
    if protocol == _UDP:
        payload = transport + 8
    elif protocol == _TCP and len(frame) > transport + 12:
        payload = transport + 4 * (frame[transport + 12] >> 4)
    else:
        return None
    least = transport + (20 if protocol == _TCP else 8)
    if transport < network + 20 or payload < least or payload > len(frame):
        return None
    return Layout(network, transport, payload, version, protocol)


def _agrees(header: PacketHeader, layout: Layout) -> bool:
    kind = header.gso_type & ~p.GSO_ECN
    wanted = {p.GSO_TCPV4: (4, _TCP), p.GSO_TCPV6: (6, _TCP)}.get(kind)
    if kind == p.GSO_UDP_L4:
        return layout.protocol == _UDP
    return wanted == (layout.version, layout.protocol)


def _segments(frame: bytes, header: PacketHeader, layout: Layout) -> list[bytes]:
    payload = memoryview(frame)[layout.payload :]
    size = header.gso_size
    count = -(-len(payload) // size)
    if not 0 < count <= _MAX_SEGMENTS:
        return []
    return [
        _segment(frame, layout, payload[index * size : (index + 1) * size], index, size, index == count - 1)
        for index in range(count)
    ]


def _segment(frame: bytes, layout: Layout, data: memoryview, index: int, size: int, last: bool) -> bytes:
    """One segment: a copy of the headers with what differs, and its piece of the payload."""
    headers = bytearray(frame[: layout.payload])
    length = layout.payload - layout.network + len(data)
    if layout.version == 4:
        _patch_ipv4(headers, layout, length, index)
    else:
        struct.pack_into(">H", headers, layout.network + 4, length - 40)
    if layout.protocol == _TCP:
        _patch_tcp(headers, layout.transport, index, size, last)
        field = layout.transport + 16
    else:
        struct.pack_into(">H", headers, layout.transport + 4, 8 + len(data))
        field = layout.transport + 6
    _fill_transport_checksum(headers, layout, data, field)
    return b"".join((p.NO_OFFLOAD, headers, data))


def _patch_ipv4(headers: bytearray, layout: Layout, length: int, index: int) -> None:
    start = layout.network
    identification = int.from_bytes(headers[start + 4 : start + 6], "big") + index
    struct.pack_into(">HH", headers, start + 2, length, identification & 0xFFFF)
    struct.pack_into(">H", headers, start + 10, 0)
    checksum = internet_checksum(headers[start : layout.transport])
    struct.pack_into(">H", headers, start + 10, checksum)


def _patch_tcp(headers: bytearray, start: int, index: int, size: int, last: bool) -> None:
    sequence = int.from_bytes(headers[start + 4 : start + 8], "big") + index * size
    struct.pack_into(">I", headers, start + 4, sequence & 0xFFFF_FFFF)
    if not last:
        headers[start + 13] &= ~_FIN_PSH & 0xFF
    if index:
        headers[start + 13] &= ~_CWR & 0xFF


def _fill_transport_checksum(headers: bytearray, layout: Layout, data: memoryview, field: int) -> None:
    headers[field : field + 2] = b"\0\0"
    first, last = (12, 20) if layout.version == 4 else (8, 40)
    addresses = headers[layout.network + first : layout.network + last]
    length = layout.payload - layout.transport + len(data)
    total = (
        ones_complement_sum(addresses)
        + layout.protocol
        + length
        + ones_complement_sum(headers[layout.transport :])
        + ones_complement_sum(data)
    )
    checksum = ~(total % 0xFFFF) & 0xFFFF
    struct.pack_into(">H", headers, field, checksum)
