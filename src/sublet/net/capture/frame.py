"""The fields of a frame that filters look at.

Reference: IEEE 802.3, RFC 791, RFC 8200 §4 "IPv6 Extension Headers", RFC 826.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

ETHERTYPES: Final = {"ip": 0x0800, "arp": 0x0806, "ip6": 0x86DD}
PROTOCOLS: Final = {"icmp": 1, "tcp": 6, "udp": 17, "icmp6": 58}
_VLAN: Final = (0x8100, 0x88A8)
_EXTENSIONS: Final = {0: 8, 43: 8, 60: 8, 44: 0}
"""IPv6 extension headers: units of their length field in bytes; a fragment header has none."""
_MAX_EXTENSIONS: Final = 8

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(slots=True)
class Fields:
    """What was found; None and -1 stand for what the frame has not."""

    length: int
    ether_source: bytes
    ether_destination: bytes
    ethertype: int = -1
    vlan: int = -1
    source: Address | None = None
    destination: Address | None = None
    protocol: int = -1
    source_port: int = -1
    destination_port: int = -1


def read_fields(frame: bytes) -> Fields:
    """Read as far as the frame goes; a frame cut short, or of nonsense, has the fields before that."""
    fields = Fields(len(frame), frame[6:12], frame[:6])
    if len(frame) < 14:
        return fields
    start, fields.ethertype = 14, int.from_bytes(frame[12:14], "big")
    if fields.ethertype in _VLAN and len(frame) >= 18:
        fields.vlan = int.from_bytes(frame[14:16], "big") & 0xFFF
        start, fields.ethertype = 18, int.from_bytes(frame[16:18], "big")
    if fields.ethertype == ETHERTYPES["ip"]:
        _read_ipv4(fields, frame[start:])
    elif fields.ethertype == ETHERTYPES["ip6"]:
        _read_ipv6(fields, frame[start:])
    elif fields.ethertype == ETHERTYPES["arp"] and len(frame) >= start + 28:
        fields.source = ipaddress.IPv4Address(frame[start + 14 : start + 18])
        fields.destination = ipaddress.IPv4Address(frame[start + 24 : start + 28])
    return fields


def _read_ipv4(fields: Fields, packet: bytes) -> None:
    if len(packet) < 20:
        return
    fields.source = ipaddress.IPv4Address(packet[12:16])
    fields.destination = ipaddress.IPv4Address(packet[16:20])
    fields.protocol = packet[9]
    if not int.from_bytes(packet[6:8], "big") & 0x1FFF:
        _read_ports(fields, packet[4 * (packet[0] & 15) :])


def _read_ipv6(fields: Fields, packet: bytes) -> None:
    if len(packet) < 40:
        return
    fields.source = ipaddress.IPv6Address(packet[8:24])
    fields.destination = ipaddress.IPv6Address(packet[24:40])
    kind, position = packet[6], 40
    for _ in range(_MAX_EXTENSIONS):
        if kind not in _EXTENSIONS or len(packet) < position + 8:
            break
        if kind == 44 and int.from_bytes(packet[position + 2 : position + 4], "big") >> 3:
            fields.protocol = packet[position]
            return
        kind, position = packet[position], position + 8 + _EXTENSIONS[kind] * packet[position + 1]
    fields.protocol = kind
    _read_ports(fields, packet[position:])


def _read_ports(fields: Fields, segment: bytes) -> None:
    if fields.protocol in (PROTOCOLS["tcp"], PROTOCOLS["udp"]) and len(segment) >= 4:
        fields.source_port = int.from_bytes(segment[:2], "big")
        fields.destination_port = int.from_bytes(segment[2:4], "big")
