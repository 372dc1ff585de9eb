"""What a machine and a switch say to each other over a SOCK_SEQPACKET socket.

A message is either packets, each after its length in four bytes, little-endian, or a JSON object. They
are told apart by the first two bytes: no packet is long enough for its length to begin with ``{"``.
The machine first asks to join (``Join``) and is answered ``{"joined": true}`` or ``{"error": ...}``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sublet.net.packet import MAX_PACKET_SIZE, MIN_PACKET_SIZE

MAX_MESSAGE_SIZE: Final = 1 << 17
MAX_MESSAGE_PACKETS: Final = 64
SOCKET_BUFFER_SIZE: Final = 4 << 20
"""Bytes that may wait for a port; what comes beyond is dropped. The host may allow less."""
_LENGTH = struct.Struct("<I")
_JSON_START: Final = b'{"'
_NAME_LIMIT: Final = 64


class ProtocolError(ConnectionError):
    """The other side does not keep to the protocol."""


@dataclass(frozen=True)
class Join:
    """What a port is to be."""

    machine: str
    """For messages to people."""
    mac: str
    """Hexadecimal."""
    spoof: bool = False
    """May send from other addresses than its own, and gets what is sent to those."""
    isolated: bool = False
    """Sees no other isolated port."""
    mirror: bool = False
    """Gets a copy of every packet, and sends none."""


def encode_json(message: dict[str, Any]) -> bytes:
    """A control message."""
    return json.dumps(message).encode()


def encode_join(join: Join) -> bytes:
    """The first message."""
    return encode_json(asdict(join))


def decode_join(message: bytes | memoryview) -> Join:
    """The first message, checked.

    Raises:
        ProtocolError: It is none.
    """
    fields = decode_json(message)
    mac, machine = fields.get("mac"), fields.get("machine")
    if not isinstance(mac, str) or not isinstance(machine, str):
        raise ProtocolError("not a request to join")
    try:
        address = bytes.fromhex(mac)
    except ValueError:
        address = b""
    if len(address) != 6 or address[0] & 1:
        raise ProtocolError("not a unicast address")
    flags = {name: fields.get(name) is True for name in ("spoof", "isolated", "mirror")}
    return Join(machine[:_NAME_LIMIT], address.hex(), **flags)


def is_json(message: bytes | memoryview) -> bool:
    """Whether a message is a control message."""
    return message[:2] == _JSON_START


def decode_json(message: bytes | memoryview) -> dict[str, Any]:
    """A control message.

    Raises:
        ProtocolError: It is none.
    """
    try:
        fields = json.loads(bytes(message))
    except ValueError as error:
        raise ProtocolError("not JSON") from error
    if not isinstance(fields, dict):
        raise ProtocolError("not an object")
    return fields


def split_packets(message: memoryview) -> Iterator[memoryview]:
    """The packets of a message, without copying.

    Raises:
        ProtocolError: Lengths that do not add up, or are not those of packets.
    """
    position = 0
    while position < len(message):
        if position + 4 > len(message):
            raise ProtocolError("a length is cut short")
        (length,) = _LENGTH.unpack_from(message, position)
        position += 4
        if not MIN_PACKET_SIZE <= length <= MAX_PACKET_SIZE or position + length > len(message):
            raise ProtocolError("a packet of a length that none has")
        yield message[position : position + length]
        position += length


def messages(packets: Sequence[bytes | memoryview]) -> Iterator[tuple[int, list[bytes | memoryview]]]:
    """(packets in it, pieces to send together) of as few messages as possible, in order."""
    pieces: list[bytes | memoryview] = []
    size = 0
    for packet in packets:
        added = 4 + len(packet)
        if pieces and (size + added > MAX_MESSAGE_SIZE or len(pieces) >= 2 * MAX_MESSAGE_PACKETS):
            yield len(pieces) // 2, pieces
            pieces, size = [], 0
        pieces += (_LENGTH.pack(len(packet)), packet)
        size += added
    if pieces:
        yield len(pieces) // 2, pieces
