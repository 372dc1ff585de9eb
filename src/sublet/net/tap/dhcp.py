"""DHCP over IPv4 as packets: a client's message out of a packet, and the packet that answers it.

Reference: RFC 2131 "Dynamic Host Configuration Protocol" §2, §4.1; RFC 2132 for options.
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sublet.net.checksum import internet_checksum
from sublet.net.packet import ETHERNET_HEADER_SIZE, HEADER_SIZE, from_frame

LEASE_S: Final = 3600
"""Seconds; clients ask again after half of it."""
_SERVER_PORT, _CLIENT_PORT = 67, 68
_SERVER_PORT_BYTES: Final = _SERVER_PORT.to_bytes(2, "big")
_IP: Final = HEADER_SIZE + ETHERNET_HEADER_SIZE
"""Where the IP header is in a packet."""
_IPV4: Final = b"\x08\x00"
_UDP: Final = 17
_FIXED: Final = struct.Struct("!4s4s2s2s4s4s4s4s16s192x4s")
"""A message up to its options: kind of hardware and hops, transaction, seconds, flags, addresses, cookie."""
_REQUEST, _REPLY = bytes((1, 1, 6)), bytes((2, 1, 6, 0))
_COOKIE: Final = bytes((99, 130, 83, 99))
_SMALLEST: Final = 300
"""Bytes of a message that every relay and client takes (RFC 1542 §2.1)."""
_BROADCAST_FLAG: Final = 0x80
_EVERYBODY: Final = ipaddress.IPv4Address("255.255.255.255")


class Kind(enum.IntEnum):
    """RFC 2132 §9.6 "DHCP Message Type"."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class _Option(enum.IntEnum):
    PAD = 0
    NETMASK = 1
    BROADCAST = 28
    REQUESTED = 50
    LEASE = 51
    KIND = 53
    SERVER = 54
    END = 255


@dataclass(frozen=True)
class Message:
    """What a client says, as far as a server reads it."""

    kind: Kind
    transaction: bytes
    flags: bytes
    client: ipaddress.IPv4Address
    """The address that the client uses already; 0.0.0.0 before it has one."""
    hardware: bytes
    """16 bytes, of which the first six are its Ethernet address."""
    requested: ipaddress.IPv4Address | None
    server: ipaddress.IPv4Address | None

    @property
    def mac(self) -> bytes:
        """The client's Ethernet address."""
        return self.hardware[:6]


def is_for_server(packet: bytes) -> bool:
    """Whether a packet is UDP over IPv4 to a DHCP server, and not a fragment."""
    if len(packet) < _IP + 28 or packet[_IP + 9] != _UDP or packet[_IP - 2 : _IP] != _IPV4:
        return False
    port = _IP + 4 * (packet[_IP] & 15) + 2
    whole = not (packet[_IP + 6] & 0x3F or packet[_IP + 7])
    return whole and packet[_IP] >> 4 == 4 and packet[port : port + 2] == _SERVER_PORT_BYTES


def parse(packet: bytes) -> Message | None:
    """The message in a packet that ``is_for_server``; None if it is no client's on this very network.

    Checksums are not looked at: nothing between the guest and here can damage a packet.
    """
    body = packet[_IP + 4 * (packet[_IP] & 15) + 8 :]
    if len(body) < _FIXED.size:
        return None
    head, transaction, _, flags, client, _, _, relay, hardware, cookie = _FIXED.unpack_from(body)
    if head[:3] != _REQUEST or cookie != _COOKIE or any(relay):
        return None
    if hardware[:6] != packet[HEADER_SIZE + 6 : HEADER_SIZE + 12]:
        return None
    options = dict(_options(body[_FIXED.size :]))
    try:
        kind = Kind(options.get(_Option.KIND, b"\0")[0])
    except (ValueError, IndexError):
        return None
    address = ipaddress.IPv4Address(client)
    requested, server = _address(options.get(_Option.REQUESTED)), _address(options.get(_Option.SERVER))
    return Message(kind, transaction, flags, address, hardware, requested, server)


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 1 < len(data) and data[position] != _Option.END:
        if data[position] == _Option.PAD:
            position += 1
            continue
        length = data[position + 1]
        yield data[position], data[position + 2 : position + 2 + length]
        position += 2 + length


def _address(value: bytes | None) -> ipaddress.IPv4Address | None:
    return ipaddress.IPv4Address(value) if value is not None and len(value) == 4 else None


@dataclass(frozen=True)
class Server:
    """Who answers: an address with its network, and a link."""

    interface: ipaddress.IPv4Interface
    mac: bytes

    def answer(self, message: Message, kind: Kind, address: ipaddress.IPv4Address | None) -> bytes:
        """The packet that gives a client ``address``, or refuses when that is None.

        It goes to the address that the client has or gets, or to everybody (RFC 2131 §4.1).
        """
        body = self._body(message, kind, address)
        to, mac = address or _EVERYBODY, message.mac
        if kind is not Kind.NAK and int(message.client):
            to = message.client
        elif kind is Kind.NAK or message.flags[0] & _BROADCAST_FLAG:
            to, mac = _EVERYBODY, b"\xff" * 6
        datagram = self._datagram(body, to)
        return from_frame(mac + self.mac + _IPV4 + datagram)

    def _body(self, message: Message, kind: Kind, address: ipaddress.IPv4Address | None) -> bytes:
        yours = address.packed if address is not None else bytes(4)
        client = bytes(4) if kind is Kind.NAK else message.client.packed
        fixed = (_REPLY, message.transaction, bytes(2), message.flags, client, yours, bytes(4), bytes(4))
        body = _FIXED.pack(*fixed, message.hardware, _COOKIE)
        body += _option(_Option.KIND, bytes((kind,))) + _option(_Option.SERVER, self.interface.ip.packed)
        if kind is not Kind.NAK:
            network = self.interface.network
            body += _option(_Option.NETMASK, network.netmask.packed)
            body += _option(_Option.BROADCAST, network.broadcast_address.packed)
        if address is not None:
            body += _option(_Option.LEASE, LEASE_S.to_bytes(4, "big"))
        return (body + bytes((_Option.END,))).ljust(_SMALLEST, b"\0")

    def _datagram(self, body: bytes, to: ipaddress.IPv4Address) -> bytes:
        source, size = self.interface.ip.packed, 8 + len(body)
        udp = struct.pack("!4H", _SERVER_PORT, _CLIENT_PORT, size, 0) + body
        pseudo = source + to.packed + struct.pack("!2H", _UDP, size)
        udp = udp[:6] + (internet_checksum(pseudo + udp) or 0xFFFF).to_bytes(2, "big") + udp[8:]
        head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + size, 0, 0, 64, _UDP, 0, source, to.packed)
        return head[:10] + internet_checksum(head).to_bytes(2, "big") + head[12:] + udp


def _option(code: int, value: bytes) -> bytes:
    return bytes((code, len(value))) + value
