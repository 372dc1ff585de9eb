"""Descriptors of frames to send, made into packets.

| descriptor                                   | what happens                                         |
|----------------------------------------------|------------------------------------------------------|
| legacy                                       | its buffer is added; IC inserts one checksum         |
| context                                      | says where the headers of the frames after it are    |
| data                                         | its buffer is added; POPTS and TSE use the context   |
| any with a buffer outside RAM                | the frame is dropped at its end                      |
| a frame longer than the largest packet       | dropped at its end                                   |
| a context that does not fit its frame        | dropped, or sent without what it asks for            |

Reference: Intel 317453-006 §3.3 "Packet Transmission".
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from typing import Any, Final

from sublet.errors import GuestError
from sublet.hw import GuestMemory
from sublet.net import MAX_FRAME_SIZE, MIN_FRAME_SIZE
from sublet.net.checksum import internet_checksum, ones_complement_sum
from sublet.net.offload import find_layout
from sublet.net.packet import GSO_TCPV4, GSO_TCPV6, NEEDS_CHECKSUM, PacketHeader

DESCRIPTOR_SIZE: Final = 16
STATUS_DD: Final = 1
_EOP, _IC_OR_TSE, _RS, _DEXT, _VLE = 0x01, 0x04, 0x08, 0x20, 0x40
_CONTEXT, _DATA = 0, 1
_TUCMD_IP: Final = 0x02
_POPTS_IXSM, _POPTS_TXSM = 1, 2


@dataclass(slots=True)
class Context:
    """Of a context descriptor: offsets in bytes from the frame's start."""

    ip_start: int = 0
    ip_checksum: int = 0
    ip_end: int = 0
    start: int = 0
    checksum: int = 0
    command: int = 0
    header_length: int = 0
    segment_size: int = 0


@dataclass(slots=True)
class Wish:
    """What the descriptors of a frame ask for, beside its bytes."""

    legacy_checksum: tuple[int, int] | None = None
    """Where the sum starts and where it goes."""
    segment: bool = False
    insert_ip: bool = False
    insert_transport: bool = False
    vlan: int | None = None


class Assembler:
    """Takes descriptors one after the other, and gives a packet at each frame's end."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.reset()

    def reset(self) -> None:
        """Forget the context and the frame begun."""
        self._context = Context()
        self._data = bytearray()
        self._bad = False
        self._wish = Wish()

    def add(self, descriptor: bytes, ether_type: int) -> tuple[bytes | None, bool]:
        """Take one descriptor of 16 bytes.

        Args:
            descriptor: As read from the ring.
            ether_type: VET, for VLAN tags to insert.

        Returns:
            A packet if it ended a good frame, and whether its status is to be reported.
        """
        address, low, high = struct.unpack("<QII", descriptor)
        command = low >> 24
        extended = bool(command & _DEXT)
        kind = low >> 20 & 15
        if extended and kind == _CONTEXT:
            self._set_context(descriptor)
            return None, bool(command & _RS)
        if extended and kind != _DATA:
            return None, bool(command & _RS)
        self._append(address, low & (0xFFFFF if extended else 0xFFFF))
        if extended:
            self._wish.segment |= bool(command & _IC_OR_TSE)
            self._wish.insert_ip |= bool(high >> 8 & _POPTS_IXSM)
            self._wish.insert_transport |= bool(high >> 8 & _POPTS_TXSM)
        elif command & _IC_OR_TSE:
            self._wish.legacy_checksum = (high >> 8 & 0xFF, low >> 16 & 0xFF)
        if not command & _EOP:
            return None, bool(command & _RS)
        if command & _VLE:
            self._wish.vlan = high >> 16
        return self._finish(ether_type), bool(command & _RS)

    def _set_context(self, descriptor: bytes) -> None:
        ip_start, ip_checksum, ip_end, start, checksum, _ = struct.unpack_from("<BBHBBH", descriptor)
        (low,) = struct.unpack_from("<I", descriptor, 8)
        header_length, segment_size = struct.unpack_from("<BH", descriptor, 13)
        self._context = Context(
            ip_start, ip_checksum, ip_end, start, checksum, low >> 24, header_length, segment_size
        )

    def _append(self, address: int, size: int) -> None:
        if self._bad or len(self._data) + size > MAX_FRAME_SIZE:
            self._bad = True
            return
        try:
            self._data += self._memory.read(address, size)
        except GuestError:
            self._bad = True

    def _finish(self, ether_type: int) -> bytes | None:
        data, bad, wish = self._data, self._bad, self._wish
        self._data, self._bad, self._wish = bytearray(), False, Wish()
        if bad or len(data) < MIN_FRAME_SIZE:
            return None
        header = self._segmentation(data) if wish.segment else self._checksums(data, wish)
        if header is None:
            return None
        if wish.vlan is not None:
            header = _insert_vlan(data, header, ether_type, wish.vlan)
        return header.pack() + bytes(data)

    def _checksums(self, data: bytearray, wish: Wish) -> PacketHeader:
        context = self._context
        if wish.insert_ip:
            _insert_checksum(data, context.ip_start, context.ip_checksum, context.ip_end + 1)
        start, field = wish.legacy_checksum or (context.start, context.checksum)
        wanted = wish.legacy_checksum is not None or wish.insert_transport
        if not wanted or not start <= field <= len(data) - 2:
            return PacketHeader()
        return PacketHeader(NEEDS_CHECKSUM, checksum_start=start, checksum_offset=field - start)

    def _segmentation(self, data: bytearray) -> PacketHeader | None:
        """Fill in what the driver leaves out: lengths, and the sum of the pseudo header with the length."""
        context = self._context
        layout = find_layout(bytes(data[:128]))
        if layout is None or layout.protocol != 6 or not context.segment_size:
            return None
        length = len(data) - layout.network
        if layout.version == 4:
            struct.pack_into(">H", data, layout.network + 2, length)
            _insert_checksum(data, layout.network, layout.network + 10, layout.transport)
        else:
            struct.pack_into(">H", data, layout.network + 4, length - 40)
        first, last = (12, 20) if layout.version == 4 else (8, 40)
        addresses = data[layout.network + first : layout.network + last]
        pseudo = addresses + struct.pack(">II", layout.protocol, len(data) - layout.transport)
        struct.pack_into(">H", data, layout.transport + 16, ones_complement_sum(pseudo))
        kind = GSO_TCPV4 if layout.version == 4 else GSO_TCPV6
        if len(data) - layout.payload <= context.segment_size:
            kind = 0  # one segment: the checksum is all that is to be done
        size = context.segment_size if kind else 0
        return PacketHeader(NEEDS_CHECKSUM, kind, layout.payload, size, layout.transport, 16)

    def save_state(self) -> dict[str, Any]:
        """The context and the frame begun."""
        return {
            "context": astuple(self._context),
            "data": bytes(self._data),
            "bad": self._bad,
            "wish": astuple(self._wish),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._context = Context(*state["context"])
        self._data = bytearray(state["data"])
        self._bad = state["bad"]
        self._wish = Wish(*state["wish"])


def _insert_checksum(data: bytearray, start: int, field: int, end: int) -> None:
    """Sum ``start`` to ``end`` with a field of zero, and store the sum there; nothing if it does not fit."""
    if not start <= field <= min(end, len(data)) - 2:
        return
    data[field : field + 2] = b"\0\0"
    struct.pack_into(">H", data, field, internet_checksum(bytes(data[start:end])))


def _insert_vlan(data: bytearray, header: PacketHeader, ether_type: int, tag: int) -> PacketHeader:
    data[12:12] = struct.pack(">HH", ether_type, tag)
    if not header.flags & NEEDS_CHECKSUM:
        return header
    return header._replace(
        checksum_start=header.checksum_start + 4,
        header_length=header.header_length + 4 if header.header_length else 0,
    )
