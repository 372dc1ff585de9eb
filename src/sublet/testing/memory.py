"""Guest RAM in a bytearray."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from sublet.errors import GuestError
from sublet.hw import PacketQueue


class FakeGuestMemory:
    """RAM from ``base`` on, ``size`` bytes (``hw.GuestMemory``)."""

    def __init__(self, size: int = 1 << 20, base: int = 0) -> None:
        self.base = base
        self.ram = bytearray(size)

    def _index(self, gpa: int, size: int) -> int:
        index = gpa - self.base
        if index < 0 or index + size > len(self.ram):
            raise GuestError(f"{size} bytes at guest-physical {gpa:#x} are not RAM")
        return index

    def read(self, gpa: int, size: int) -> bytes:
        """A copy of ``size`` bytes."""
        index = self._index(gpa, size)
        return bytes(self.ram[index : index + size])

    def packet_queue(
        self,
        size: int,
        desc_table: int,
        avail_ring: int,
        used_ring: int,
        event_idx: bool,
        indirect: bool,
        positions: tuple[int, int, int],
    ) -> PacketQueue:
        """Only the core's memory has them (``GuestMemory.alone``)."""
        raise NotImplementedError

    def read_into(self, gpa: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``."""
        buffer[:] = self.read(gpa, len(buffer))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store all of ``data``."""
        index = self._index(gpa, len(data))
        self.ram[index : index + len(data)] = data

    def gather(self, segments: Sequence[tuple[int, int]]) -> bytes:
        """Copies of ranges, one after the other."""
        return b"".join(self.read(gpa, size) for gpa, size in segments)

    def scatter(self, segments: Sequence[tuple[int, int]], data: bytes | bytearray | memoryview) -> int:
        """Store into ranges until they or the data end."""
        position = 0
        for gpa, size in segments:
            piece = memoryview(data)[position : position + size]
            self.write(gpa, piece)
            position += len(piece)
        return position

    def _read_int(self, gpa: int, layout: str) -> int:
        size = struct.calcsize(layout)
        return int(struct.unpack(layout, self.read(gpa, size))[0])

    def read_u16(self, gpa: int) -> int:
        """16 bits, little-endian."""
        return self._read_int(gpa, "<H")

    def read_u32(self, gpa: int) -> int:
        """32 bits, little-endian."""
        return self._read_int(gpa, "<I")

    def read_u64(self, gpa: int) -> int:
        """64 bits, little-endian."""
        return self._read_int(gpa, "<Q")

    def write_u16(self, gpa: int, value: int) -> None:
        """16 bits, little-endian."""
        self.write(gpa, struct.pack("<H", value))

    def write_u32(self, gpa: int, value: int) -> None:
        """32 bits, little-endian."""
        self.write(gpa, struct.pack("<I", value))

    def write_u64(self, gpa: int, value: int) -> None:
        """64 bits, little-endian."""
        self.write(gpa, struct.pack("<Q", value))
