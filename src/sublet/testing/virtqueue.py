"""The driver's side of a split virtqueue, which can also do everything that a driver must not."""

from __future__ import annotations

import struct

from sublet.hw import GuestMemory

DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT = 1, 2, 4


class DriverQueue:
    """A queue laid out from ``base`` on: table, avail ring, used ring, then room for buffers.

    ``alignment``, a power of two, is the used ring's; drivers of the legacy interface take 4096.

    Reference: virtio 1.2 §2.7 "Split Virtqueues".
    """

    def __init__(self, memory: GuestMemory, base: int, size: int, alignment: int = 4) -> None:
        self.memory = memory
        self.size = size
        self.desc_table = base
        self.avail_ring = base + 16 * size
        self.used_ring = (self.avail_ring + 6 + 2 * size + alignment - 1) & -alignment
        self._next_buffer = (self.used_ring + 6 + 8 * size + 4095) & ~4095
        self._next_desc = 0
        self._avail_idx = 0
        self._seen_used = 0

    def alloc(self, size: int) -> int:
        """Room for a buffer; never given back."""
        gpa = self._next_buffer
        self._next_buffer += (size + 15) & ~15
        return gpa

    def set_desc(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Write one descriptor, right or wrong."""
        raw = struct.pack("<QIHH", address, length, flags, following)
        self.memory.write(self.desc_table + 16 * index, raw)

    def make_available(self, head: int) -> None:
        """Put a head into the avail ring and publish it."""
        self.memory.write_u16(self.avail_ring + 4 + 2 * (self._avail_idx % self.size), head)
        self.set_avail_idx(self._avail_idx + 1)

    def set_avail_idx(self, value: int) -> None:
        """Publish any index."""
        self._avail_idx = value & 0xFFFF
        self.memory.write_u16(self.avail_ring + 2, self._avail_idx)

    def add(self, readable: list[tuple[int, int]], writable: list[tuple[int, int]]) -> int:
        """Make a direct chain available and return its head."""
        parts = [(part, 0) for part in readable] + [(part, DESC_F_WRITE) for part in writable]
        indices = [(self._next_desc + i) % self.size for i in range(len(parts))]
        for i, ((address, length), flags) in enumerate(parts):
            last = i == len(parts) - 1
            following = 0 if last else indices[i + 1]
            self.set_desc(indices[i], address, length, flags | (0 if last else DESC_F_NEXT), following)
        self._next_desc = (self._next_desc + len(parts)) % self.size
        self.make_available(indices[0])
        return indices[0]

    def add_indirect(self, readable: list[tuple[int, int]], writable: list[tuple[int, int]]) -> int:
        """Make a chain in an indirect table available and return its head."""
        parts = [(part, 0) for part in readable] + [(part, DESC_F_WRITE) for part in writable]
        table = b""
        for i, ((address, length), flags) in enumerate(parts):
            last = i == len(parts) - 1
            table += struct.pack("<QIHH", address, length, flags | (0 if last else DESC_F_NEXT), i + 1)
        gpa = self.alloc(len(table))
        self.memory.write(gpa, table)
        head = self._next_desc
        self.set_desc(head, gpa, len(table), DESC_F_INDIRECT)
        self._next_desc = (head + 1) % self.size
        self.make_available(head)
        return head

    def used(self) -> list[tuple[int, int]]:
        """(head, written) of the chains returned since the last call."""
        found = []
        idx = self.memory.read_u16(self.used_ring + 2)
        while self._seen_used != idx:
            element = self.used_ring + 4 + 8 * (self._seen_used % self.size)
            found.append((self.memory.read_u32(element), self.memory.read_u32(element + 4)))
            self._seen_used = (self._seen_used + 1) & 0xFFFF
        return found

    def suppress_interrupts(self) -> None:
        """Set VIRTQ_AVAIL_F_NO_INTERRUPT."""
        self.memory.write_u16(self.avail_ring, 1)

    def set_used_event(self, value: int) -> None:
        """EVENT_IDX: interrupt when this used index is passed."""
        self.memory.write_u16(self.avail_ring + 4 + 2 * self.size, value & 0xFFFF)

    def avail_event(self) -> int:
        """EVENT_IDX: the avail index whose passing the device wants to be told of."""
        return self.memory.read_u16(self.used_ring + 4 + 8 * self.size)
