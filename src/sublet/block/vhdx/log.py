"""The VHDX log: entries that carry metadata sectors, found and packed. Knows bytes, not files.

A log is a ring of 4 KiB sectors. An entry is a header and descriptors, padded to whole sectors, then a data
sector for every data descriptor. The active sequence is the run of entries, one sequence number after the
other, that ends in the valid entry of the highest number and begins where that entry's tail points.

Reference: MS-VHDX 8.0 §2.3 "Log".
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from sublet.block.vhdx.crc32c import crc32c
from sublet.block.vhdx.layout import REGION_OFFSETS, with_checksum
from sublet.errors import CorruptImage

SECTOR = 4096
MAX_LOG = 32 << 20
MAX_FILE = 1 << 47
"""No file offset of a log entry lies beyond: twice the largest disk."""

_HEADER = struct.Struct("<4sIIIQI4x16sQQ")
_DESCRIPTOR = struct.Struct("<4sIQQQ")
_DATA_START, _DATA_END = 8, 4092
_FIRST_SECTOR = (SECTOR - _HEADER.size) // _DESCRIPTOR.size
_PER_SECTOR = SECTOR // _DESCRIPTOR.size


@dataclass(frozen=True)
class Patch:
    """What an entry does to the file: ``data`` at ``offset``, or zeroes when ``data`` is None; in bytes."""

    offset: int
    size: int
    data: bytes | None = None


@dataclass(frozen=True)
class Entry:
    """A valid log entry.

    Attributes:
        offset: Bytes from the start of the log.
        length: Bytes.
        tail: Bytes from the start of the log to the oldest entry still needed.
        flushed: The file was at least this many bytes long when the entry was written.
        last: The file is at least this many bytes long once the entry is applied.
    """

    offset: int
    length: int
    tail: int
    sequence: int
    descriptors: int
    log_guid: uuid.UUID
    flushed: int
    last: int


def pack_entry(
    sectors: Mapping[int, bytes | bytearray], *, sequence: int, at: int, log_guid: uuid.UUID, file_size: int
) -> bytes:
    """An entry that writes whole sectors and needs no entry before it.

    Args:
        sectors: 4 KiB each, by file offset.
        sequence: The entry's number.
        at: Bytes from the start of the log to where the entry goes.
        log_guid: The header's log GUID.
        file_size: Bytes of the file, on stable storage.
    """
    head = b""
    for offset, data in sectors.items():
        leading, trailing = int.from_bytes(data[:8], "little"), int.from_bytes(data[_DATA_END:], "little")
        head += _DESCRIPTOR.pack(b"desc", trailing, leading, offset, sequence)
    area = _descriptor_area(len(sectors))
    length = area + SECTOR * len(sectors)
    header = _HEADER.pack(
        b"loge", 0, length, at, sequence, len(sectors), log_guid.bytes_le, file_size, file_size
    )
    parts = [(header + head).ljust(area, b"\0")]
    high, low = (sequence >> 32).to_bytes(4, "little"), (sequence & 0xFFFF_FFFF).to_bytes(4, "little")
    for data in sectors.values():
        parts.append(b"data" + high + bytes(data[_DATA_START:_DATA_END]) + low)
    return with_checksum(b"".join(parts))


def entry_size(sectors: int) -> int:
    """Bytes of an entry that writes so many sectors."""
    return _descriptor_area(sectors) + sectors * SECTOR


def _descriptor_area(count: int) -> int:
    """Bytes of header and ``count`` descriptors, in whole sectors."""
    more = max(0, count - _FIRST_SECTOR)
    return SECTOR * (1 + -(-more // _PER_SECTOR))


class LogReader:
    """Finds the active sequence of a log.

    Args:
        ring: The whole log.
        log_guid: The header's log GUID; entries of others are stale.
    """

    def __init__(self, ring: bytes, log_guid: uuid.UUID) -> None:
        self._ring = ring
        self._guid = log_guid
        # Entries of a real log overlap only where stale, so this bounds the work of a hostile one.
        self._budget = 2 * len(ring) + SECTOR
        self._good: dict[int, bool] = {}

    def active_sequence(self) -> list[Entry]:
        """The entries to apply, oldest first; empty when nothing was logged.

        Raises:
            CorruptImage: Entries overlap so much that no writer can have made them.
        """
        found = {
            offset: entry for offset in range(0, len(self._ring), SECTOR) if (entry := self._peek(offset))
        }
        for head in sorted(found.values(), key=lambda entry: entry.sequence, reverse=True):
            sequence = self._walk(found, head)
            if sequence:
                return sequence
        return []

    def patches(self, entry: Entry) -> list[Patch]:
        """What a valid entry writes.

        Raises:
            CorruptImage: A descriptor is malformed or reaches where the log may not write.
        """
        raw = self._slice(entry.offset, entry.length)
        sector = _descriptor_area(entry.descriptors)
        patches = []
        for index in range(entry.descriptors):
            at = _HEADER.size + index * _DESCRIPTOR.size
            kind, trailing, leading, offset, sequence = _DESCRIPTOR.unpack_from(raw, at)
            if sequence != entry.sequence:
                raise CorruptImage(f"VHDX log: descriptor {index} has sequence number {sequence}")
            if kind == b"zero":
                patches.append(_checked(Patch(offset, leading), entry))
            elif kind == b"desc":
                data = _data_sector(raw[sector : sector + SECTOR], entry.sequence, leading, trailing)
                patches.append(_checked(Patch(offset, SECTOR, data), entry))
                sector += SECTOR
            else:
                raise CorruptImage(f"VHDX log: descriptor {index} has the signature {kind!r}")
        return patches

    def _peek(self, offset: int) -> Entry | None:
        """The entry whose header is at ``offset``; its checksum is not looked at."""
        if self._ring[offset : offset + 4] != b"loge":
            return None
        _, _, length, tail, sequence, count, guid, flushed, last = _HEADER.unpack_from(self._ring, offset)
        entry = Entry(offset, length, tail, sequence, count, uuid.UUID(bytes_le=guid), flushed, last)
        plausible = (
            entry.log_guid == self._guid
            and sequence
            and SECTOR <= length <= len(self._ring)
            and length % SECTOR == 0
            and tail % SECTOR == 0
            and _descriptor_area(count) <= length
        )
        return entry if plausible else None

    def _walk(self, found: dict[int, Entry], head: Entry) -> list[Entry]:
        """From the head's tail to the head; empty when the chain is broken."""
        sequence: list[Entry] = []
        offset = head.tail
        while len(sequence) <= len(found):
            entry = found.get(offset)
            expected = sequence[-1].sequence + 1 if sequence else None
            if entry is None or expected not in (None, entry.sequence) or not self._is_good(entry):
                return []
            sequence.append(entry)
            if entry is head:
                return sequence
            offset = (offset + entry.length) % len(self._ring)
        return []

    def _is_good(self, entry: Entry) -> bool:
        """Whether the checksum of the whole entry holds; computed once."""
        if entry.offset not in self._good:
            self._budget -= entry.length
            if self._budget < 0:
                raise CorruptImage("VHDX log: its entries overlap")
            raw = self._slice(entry.offset, entry.length)
            stored = int.from_bytes(raw[4:8], "little")
            self._good[entry.offset] = crc32c(raw[:4] + bytes(4) + raw[8:]) == stored
        return self._good[entry.offset]

    def _slice(self, offset: int, length: int) -> bytes:
        """Bytes of the ring, around its end."""
        raw = self._ring[offset : offset + length]
        return raw + self._ring[: length - len(raw)]


def _data_sector(raw: bytes, sequence: int, leading: int, trailing: int) -> bytes:
    """The 4 KiB that a data sector and its descriptor stand for.

    Raises:
        CorruptImage: The sector is missing or of another entry.
    """
    high, low = raw[4:_DATA_START], raw[_DATA_END:SECTOR]
    if raw[:4] != b"data" or int.from_bytes(low + high, "little") != sequence:
        raise CorruptImage(f"VHDX log: a data sector of entry {sequence} is missing or stale")
    return leading.to_bytes(8, "little") + raw[_DATA_START:_DATA_END] + trailing.to_bytes(4, "little")


def _checked(patch: Patch, entry: Entry) -> Patch:
    """Refuse what lies before the region tables (headers are never logged) or beyond the file then."""
    limit = min(max(entry.last, entry.flushed), MAX_FILE)
    if patch.offset % SECTOR or patch.size % SECTOR:
        raise CorruptImage(f"VHDX log: {patch.size} bytes at {patch.offset} are not whole sectors of 4 KiB")
    if patch.offset < REGION_OFFSETS[0] or patch.offset + patch.size > limit:
        raise CorruptImage(f"VHDX log: entry {entry.sequence} writes {patch.size} bytes at {patch.offset}")
    return patch
