"""The device's side of a split virtqueue, for a driver that may be hostile.

What a driver can get wrong, and what happens (each raises ``GuestError``; the device then asks for a reset):

| driver's fault                                         | rule (virtio 1.2)                 |
|--------------------------------------------------------|-----------------------------------|
| more chains available than the queue has entries       | §2.7.6 avail idx                  |
| head or next past the table                            | §2.7.5                            |
| a loop, or a chain longer than the table               | §2.7.5.2 "MUST NOT ... loop"      |
| readable descriptor after a writable one               | §2.7.4.2                          |
| more than 4 GiB in a chain                             | §2.7.5 2^32 bytes                 |
| indirect: not negotiated, nested, with NEXT, bad length| §2.7.5.3.1                        |
| table, ring or buffer outside RAM                      | ``GuestMemory`` refuses           |

Reference: virtio 1.2 §2.7 "Split Virtqueues".
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass, field
from typing import Any

from sublet.errors import GuestError
from sublet.hw import GuestMemory, PacketQueue

Segment = tuple[int, int]
"""Guest-physical address and length in bytes (at least 1)."""

DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT = 1, 2, 4
DESC_SIZE = 16
USED_ELEM_SIZE = 8
AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1
MAX_QUEUE_SIZE = 1024
MAX_INDIRECT = 1024
"""Entries in an indirect table.

Deviation: §2.7.5.3.1 limits a table to the queue size; Linux exceeds it on short queues.
"""
MAX_CHAIN_BYTES = 1 << 32
_READ_AHEAD = 4
_DESCRIPTOR = struct.Struct("<QIHH")


@dataclass(slots=True)
class DescriptorChain:
    """One request: what the device may read, then what it may write, in order."""

    head: int
    readable: list[Segment] = field(default_factory=list)
    writable: list[Segment] = field(default_factory=list)

    @property
    def readable_size(self) -> int:
        """Bytes that the driver supplied."""
        return sum(length for _, length in self.readable)

    @property
    def writable_size(self) -> int:
        """Bytes that the device may write."""
        return sum(length for _, length in self.writable)


class Virtqueue:
    """One enabled queue. Not thread-safe: the device serialises its calls.

    Args:
        memory: Guest RAM.
        size: Entries, a power of two up to ``MAX_QUEUE_SIZE``.
        desc_table, avail_ring, used_ring: Guest-physical addresses, aligned to 16, 2 and 4.
        event_idx, indirect: Whether VIRTIO_F_EVENT_IDX and VIRTIO_F_INDIRECT_DESC were negotiated.

    Raises:
        GuestError: An address is unaligned or a part reaches past the address space.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        desc_table: int,
        avail_ring: int,
        used_ring: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
    ) -> None:
        if desc_table % 16 or avail_ring % 2 or used_ring % 4:
            raise GuestError("a virtqueue part is not aligned to 16, 2 and 4 bytes")
        if max(desc_table, avail_ring, used_ring) + 16 * size + 6 > 1 << 64:
            raise GuestError("a virtqueue part reaches past the address space")
        self.memory = memory
        self.size = size
        self._desc_table = desc_table
        self._avail_ring = avail_ring
        self._used_ring = used_ring
        self._event_idx = event_idx
        self._indirect = indirect
        self._next_avail = 0
        self._next_used = 0
        self._signalled_used = 0
        self._fence_lock = threading.Lock()

    # Taking requests

    def pop_batch(self, limit: int) -> list[DescriptorChain]:
        """Take up to ``limit`` available chains.

        Raises:
            GuestError: The driver broke a rule of the table above. Nothing was taken.
        """
        count = (self.memory.read_u16(self._avail_ring + 2) - self._next_avail) & 0xFFFF
        if count > self.size:
            raise GuestError(f"{count} chains available in a virtqueue of {self.size} entries")
        count = min(count, limit)
        if not count:
            return []
        chains = [self._walk(head) for head in self._read_heads(count)]
        self._next_avail = (self._next_avail + count) & 0xFFFF
        return chains

    def pop(self) -> DescriptorChain | None:
        """Take one available chain, if there is one; errors as ``pop_batch``."""
        chains = self.pop_batch(1)
        return chains[0] if chains else None

    def undo_pop(self, count: int) -> None:
        """Put the last ``count`` chains taken back; they will be taken again."""
        self._next_avail = (self._next_avail - count) & 0xFFFF

    def _read_heads(self, count: int) -> tuple[int, ...]:
        start = self._next_avail % self.size
        first = min(count, self.size - start)
        raw = self.memory.read(self._avail_ring + 4 + 2 * start, 2 * first)
        if first < count:
            raw += self.memory.read(self._avail_ring + 4, 2 * (count - first))
        return struct.unpack(f"<{count}H", raw)

    def _walk(self, head: int) -> DescriptorChain:
        chain = DescriptorChain(head)
        total = 0
        index = head
        window_start, window = 0, b""
        for _ in range(self.size):
            if index >= self.size:
                raise GuestError(f"descriptor {index} in a table of {self.size} entries")
            offset = (index - window_start) * DESC_SIZE
            if not 0 <= offset < len(window):
                window_start, window, offset = index, self._read_window(index), 0
            address, length, flags, next_index = _DESCRIPTOR.unpack_from(window, offset)
            if flags & DESC_F_INDIRECT:
                self._walk_indirect(chain, total, address, length, flags)
                return chain
            total = _add_segment(chain, total, address, length, flags)
            if not flags & DESC_F_NEXT:
                return chain
            index = next_index
        raise GuestError(f"descriptor chain from {head} loops")

    def _read_window(self, index: int) -> bytes:
        """The descriptor and a few after it, which mostly are the rest of its chain."""
        count = min(_READ_AHEAD, self.size - index)
        return self.memory.read(self._desc_table + DESC_SIZE * index, DESC_SIZE * count)

    def _walk_indirect(
        self, chain: DescriptorChain, total: int, address: int, length: int, flags: int
    ) -> None:
        count = length // DESC_SIZE
        if not self._indirect or flags & DESC_F_NEXT:
            raise GuestError("indirect descriptor without the feature, or with NEXT")
        if length % DESC_SIZE or not 0 < count <= MAX_INDIRECT or address + length > 1 << 64:
            raise GuestError(f"indirect table of {length} bytes")
        table = self.memory.read(address, length)
        index = 0
        for _ in range(count):
            if index >= count:
                raise GuestError(f"indirect descriptor {index} in a table of {count} entries")
            entry = _DESCRIPTOR.unpack_from(table, DESC_SIZE * index)
            if entry[2] & DESC_F_INDIRECT:
                raise GuestError("nested indirect descriptor")
            total = _add_segment(chain, total, entry[0], entry[1], entry[2])
            if not entry[2] & DESC_F_NEXT:
                return
            index = entry[3]
        raise GuestError("indirect descriptor table loops")

    # Leaving both to the core

    def ring(self) -> tuple[int, int, int, int, bool, int, int]:
        """What ``core.InPlace.serve`` has to know."""
        parts = (self._desc_table, self._avail_ring, self._used_ring)
        return (self.size, *parts, self._indirect, self._next_avail, self._next_used)

    def served(self, count: int) -> None:
        """The next ``count`` chains were taken and returned by the core."""
        self._next_avail = (self._next_avail + count) & 0xFFFF
        self._next_used = (self._next_used + count) & 0xFFFF

    # Returning them

    def push_batch(self, used: list[tuple[int, int]]) -> None:
        """Return chains, in order: (head, bytes written into the writable part) each."""
        start = self._next_used % self.size
        raw = b"".join(struct.pack("<II", head, written) for head, written in used)
        first = (self.size - start) * USED_ELEM_SIZE
        self.memory.write(self._used_ring + 4 + USED_ELEM_SIZE * start, raw[:first])
        if len(raw) > first:
            self.memory.write(self._used_ring + 4, raw[first:])
        self._next_used = (self._next_used + len(used)) & 0xFFFF
        self.memory.write_u16(self._used_ring + 2, self._next_used)

    def push(self, head: int, written: int) -> None:
        """Return one chain."""
        self.push_batch([(head, written)])

    def needs_interrupt(self) -> bool:
        """Whether the driver wants an interrupt for what was returned since the last call."""
        self._fence()
        old, new = self._signalled_used, self._next_used
        self._signalled_used = new
        if old == new:
            return False
        if not self._event_idx:
            return not self.memory.read_u16(self._avail_ring) & AVAIL_F_NO_INTERRUPT
        event = self.memory.read_u16(self._avail_ring + 4 + 2 * self.size)
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF

    # Notifications from the driver

    def enable_notifications(self) -> bool:
        """Ask to be notified of the next chain.

        Returns:
            Whether chains became available meanwhile: then take them, a notification may not come.
        """
        if self._event_idx:
            self.memory.write_u16(self._used_ring + 4 + USED_ELEM_SIZE * self.size, self._next_avail)
        else:
            self.memory.write_u16(self._used_ring, 0)
        self._fence()
        return self.memory.read_u16(self._avail_ring + 2) != self._next_avail

    def disable_notifications(self) -> None:
        """Tell the driver not to notify; with EVENT_IDX a stale event index says so already."""
        if not self._event_idx:
            self.memory.write_u16(self._used_ring, USED_F_NO_NOTIFY)

    def _fence(self) -> None:
        """Order our stores before the loads that follow: taking a lock is a full barrier on x86."""
        with self._fence_lock:
            pass

    def for_packets(self) -> PacketQueue:
        """The same queue, walked in the core from here on."""
        return self.memory.packet_queue(
            self.size,
            self._desc_table,
            self._avail_ring,
            self._used_ring,
            event_idx=self._event_idx,
            indirect=self._indirect,
            positions=(self._next_avail, self._next_used, self._signalled_used),
        )

    # Snapshots

    def save_state(self) -> dict[str, Any]:
        """The positions; addresses and size belong to the transport."""
        return {
            "next_avail": self._next_avail,
            "next_used": self._next_used,
            "signalled_used": self._signalled_used,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._next_avail = state["next_avail"]
        self._next_used = state["next_used"]
        self._signalled_used = state["signalled_used"]


def _add_segment(chain: DescriptorChain, total: int, address: int, length: int, flags: int) -> int:
    """Append a descriptor to its chain and return the chain's bytes so far."""
    total += length
    if total > MAX_CHAIN_BYTES or address + length > 1 << 64:
        raise GuestError("descriptor chain of more than 4 GiB, or past the address space")
    if flags & DESC_F_WRITE:
        if length:
            chain.writable.append((address, length))
    elif chain.writable:
        raise GuestError("readable descriptor after a writable one")
    elif length:
        chain.readable.append((address, length))
    return total


def split_segments(segments: list[Segment], size: int) -> tuple[list[Segment], list[Segment]]:
    """Cut a list of segments after ``size`` bytes: (at most ``size`` bytes, the rest)."""
    head: list[Segment] = []
    for index, (address, length) in enumerate(segments):
        if length > size:
            rest = [(address + size, length - size), *segments[index + 1 :]]
            return ([*head, (address, size)] if size else head), rest
        head.append((address, length))
        size -= length
    return head, []


def read_segments(memory: GuestMemory, segments: list[Segment]) -> bytes:
    """Gather. Precondition: the caller has bounded the total."""
    if len(segments) == 1:
        return memory.read(*segments[0])
    return memory.gather(segments)


def write_segments(memory: GuestMemory, segments: list[Segment], data: bytes | memoryview) -> int:
    """Scatter ``data`` until either is used up; returns the bytes written."""
    if segments and len(data) == segments[0][1]:
        memory.write(segments[0][0], data)
        return len(data)
    return memory.scatter(segments, data)
