"""Writing pcapng, little-endian, with times in nanoseconds.

Reference: draft-ietf-opsawg-pcapng-03 §4 "Block Definition".
"""

from __future__ import annotations

import struct
from typing import Final

LINKTYPE_ETHERNET: Final = 1
INBOUND, OUTBOUND = 1, 2
"""epb_flags, bits 0 and 1."""

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_BYTE_ORDER: Final = 0x1A2B3C4D
_END, _COMMENT = 0, 1
_SHB_USER_APPLICATION: Final = 4
_IF_NAME, _IF_DESCRIPTION, _IF_MAC, _IF_TIME_RESOLUTION, _IF_FILTER = 2, 3, 6, 9, 11
_EPB_FLAGS: Final = 2
_ISB_RECEIVED, _ISB_DROPPED = 4, 5
_NANOSECONDS: Final = b"\x09"


def section(application: str) -> bytes:
    """The Section Header Block, first in a file."""
    body = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
    return _block(_SECTION, body, [(_SHB_USER_APPLICATION, application.encode())])


def interface(name: str, description: str, mac: bytes, snap_length: int, filter_text: str) -> bytes:
    """An Interface Description Block; interfaces are numbered in order, from 0."""
    options = [
        (_IF_NAME, name.encode()),
        (_IF_DESCRIPTION, description.encode()),
        (_IF_MAC, mac),
        (_IF_TIME_RESOLUTION, _NANOSECONDS),
    ]
    if filter_text:
        options.append((_IF_FILTER, b"\0" + filter_text.encode()))
    return _block(_INTERFACE, struct.pack("<HHI", LINKTYPE_ETHERNET, 0, snap_length), options)


def packet(
    number: int, time_ns: int, frame: bytes, length: int, direction: int, comment: str | None = None
) -> bytes:
    """An Enhanced Packet Block.

    Args:
        number: The interface's.
        time_ns: Since 1970.
        frame: As much of it as is kept.
        length: What it had on the wire.
        direction: ``INBOUND`` or ``OUTBOUND``.
        comment: Shown beside the packet.
    """
    body = struct.pack("<IIIII", number, time_ns >> 32, time_ns & 0xFFFF_FFFF, len(frame), length)
    options = [(_EPB_FLAGS, struct.pack("<I", direction))]
    if comment is not None:
        options.insert(0, (_COMMENT, comment.encode()))
    return _block(_PACKET, body + _padded(frame), options)


def statistics(number: int, time_ns: int, received: int, dropped: int) -> bytes:
    """An Interface Statistics Block: what the recorder saw, and what it had no room for."""
    body = struct.pack("<III", number, time_ns >> 32, time_ns & 0xFFFF_FFFF)
    options = [(_ISB_RECEIVED, struct.pack("<Q", received)), (_ISB_DROPPED, struct.pack("<Q", dropped))]
    return _block(_STATISTICS, body, options)


def _block(kind: int, body: bytes, options: list[tuple[int, bytes]]) -> bytes:
    content = body + b"".join(
        struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options
    )
    content += struct.pack("<HH", _END, 0)
    length = struct.pack("<I", 12 + len(content))
    return struct.pack("<I", kind) + length + content + length


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
