"""Structures of a VHD file: footer, dynamic header, parent locators. All numbers are big-endian.

Reference: Microsoft "Virtual Hard Disk Image Format Specification" 1.0 (October 2006), sections "Hard Disk
Footer Format", "Dynamic Disk Header Format", "Block Allocation Table and Data Blocks".
"""

from __future__ import annotations

import datetime
import enum
import struct
import uuid
from dataclasses import dataclass, field, replace

from sublet.errors import CorruptImage, UnsupportedImage

SECTOR = 512
FOOTER_SIZE = 512
HEADER_SIZE = 1024
LOCATORS = 8
COOKIE = b"conectix"
HEADER_COOKIE = b"cxsparse"
NO_OFFSET = 0xFFFF_FFFF_FFFF_FFFF
FREE = 0xFFFF_FFFF
"""BAT entry of a block without storage."""

DEFAULT_BLOCK_SIZE = 2 << 20
MIN_BLOCK_SIZE, MAX_BLOCK_SIZE = 4096, 256 << 20
MAX_DISK_SIZE = 0xFF00_0000 * SECTOR
"""2040 GiB: what a BAT of 32-bit sector numbers still reaches with its bitmaps."""

_EPOCH = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")
_HEADER = struct.Struct(">8sQQIIII16sI4x512s")
_LOCATOR = struct.Struct(">4sIIIQ")
_FEATURE_RESERVED = 2
_VERSION = 0x0001_0000


class DiskType(enum.IntEnum):
    """Field "Disk Type" of the footer."""

    FIXED = 2
    DYNAMIC = 3
    DIFFERENCING = 4


@dataclass(frozen=True)
class Footer:
    """The hard disk footer: the file's last 512 bytes, copied to its first ones unless the disk is fixed.

    Attributes:
        disk_size: "Current Size", bytes.
        original_size: "Original Size", bytes, as created.
        disk_type: Which of the three kinds.
        data_offset: Bytes to the dynamic header; ``NO_OFFSET`` for a fixed disk.
        unique_id: What a child names its parent by.
        timestamp: Seconds since 2000-01-01 UTC.
        creator: "Creator Application", 4 bytes.
        geometry: Cylinders, heads, sectors per track.
    """

    disk_size: int
    disk_type: DiskType
    unique_id: uuid.UUID
    data_offset: int = NO_OFFSET
    original_size: int = 0
    timestamp: int = 0
    creator: bytes = b"win "
    creator_version: int = 0x000A_0000
    creator_os: bytes = b"Wi2k"
    geometry: tuple[int, int, int] = (0, 0, 0)
    saved_state: int = 0

    def pack(self) -> bytes:
        """The 512 bytes, checksum included."""
        raw = _FOOTER.pack(
            COOKIE,
            _FEATURE_RESERVED,
            _VERSION,
            self.data_offset,
            self.timestamp,
            self.creator,
            self.creator_version,
            self.creator_os,
            self.original_size,
            self.disk_size,
            *self.geometry,
            self.disk_type,
            0,
            self.unique_id.bytes,
            self.saved_state,
        )
        return _with_checksum(raw, 64)

    def resized(self, disk_size: int) -> Footer:
        """The same disk of another size in bytes."""
        return replace(self, disk_size=disk_size, geometry=geometry(disk_size))

    @classmethod
    def parse(cls, raw: bytes) -> Footer:
        """Read a footer.

        Args:
            raw: 512 bytes, or the 511 that Virtual PC before 2004 wrote.

        Raises:
            CorruptImage: Cookie or checksum is wrong, or a field is out of range.
            UnsupportedImage: Of another version or disk type.
        """
        raw = raw.ljust(FOOTER_SIZE, b"\0")
        if raw[:8] != COOKIE:
            raise CorruptImage(f"VHD footer: the cookie is {raw[:8]!r}, not {COOKIE!r}")
        _verify(raw, 64, "footer")
        fields = _FOOTER.unpack(raw)
        _, _, version, data_offset, timestamp, creator, creator_version, creator_os = fields[:8]
        original, size, cylinders, heads, sectors, kind, _, unique_id, saved = fields[8:]
        if version >> 16 != 1:
            raise UnsupportedImage(f"VHD footer: file format version {version >> 16}, only 1 is known")
        if kind not in set(DiskType):
            raise UnsupportedImage(f"VHD footer: disk type {kind} is none of fixed, dynamic, differencing")
        if size % SECTOR or size > (1 << 63) - FOOTER_SIZE - 1:
            raise CorruptImage(f"VHD footer: a current size of {size} bytes is not a disk of whole sectors")
        return cls(
            disk_size=size,
            disk_type=DiskType(kind),
            unique_id=uuid.UUID(bytes=unique_id),
            data_offset=data_offset,
            original_size=original,
            timestamp=timestamp,
            creator=creator,
            creator_version=creator_version,
            creator_os=creator_os,
            geometry=(cylinders, heads, sectors),
            saved_state=saved,
        )


@dataclass(frozen=True)
class Locator:
    """One parent locator entry.

    Attributes:
        platform: ``W2ru`` (relative Windows path, UTF-16LE), ``W2ku`` (absolute), ``MacX`` (file URL, UTF-8).
        space: Bytes reserved for it in the file (some writers count sectors).
        length: Bytes of its text.
        offset: Bytes from the start of the file.
    """

    platform: bytes = bytes(4)
    space: int = 0
    length: int = 0
    offset: int = 0


@dataclass(frozen=True)
class DynamicHeader:
    """The dynamic disk header.

    Attributes:
        table_offset: Bytes to the block allocation table.
        max_table_entries: Entries of that table.
        block_size: Bytes of data in a block, a power of two.
        parent_id, parent_timestamp, parent_name: What a differencing disk knows of its parent.
        locators: Eight entries, unused ones zero.
    """

    table_offset: int
    max_table_entries: int
    block_size: int = DEFAULT_BLOCK_SIZE
    parent_id: uuid.UUID = field(default_factory=lambda: uuid.UUID(int=0))
    parent_timestamp: int = 0
    parent_name: str = ""
    locators: tuple[Locator, ...] = (Locator(),) * LOCATORS

    def pack(self) -> bytes:
        """The 1024 bytes, checksum included."""
        raw = _HEADER.pack(
            HEADER_COOKIE,
            NO_OFFSET,
            self.table_offset,
            _VERSION,
            self.max_table_entries,
            self.block_size,
            0,
            self.parent_id.bytes,
            self.parent_timestamp,
            self.parent_name.encode("utf-16-be")[:512],
        )
        for entry in self.locators:
            raw += _LOCATOR.pack(entry.platform, entry.space, entry.length, 0, entry.offset)
        return _with_checksum(raw.ljust(HEADER_SIZE, b"\0"), 36)

    def at_table(self, offset: int, entries: int) -> DynamicHeader:
        """The same disk with its allocation table of ``entries`` at ``offset``."""
        return replace(self, table_offset=offset, max_table_entries=entries)

    @classmethod
    def parse(cls, raw: bytes) -> DynamicHeader:
        """Read a dynamic header.

        Args:
            raw: 1024 bytes.

        Raises:
            CorruptImage: Cookie or checksum is wrong, or a field is out of range.
            UnsupportedImage: Of another version.
        """
        if len(raw) < HEADER_SIZE or raw[:8] != HEADER_COOKIE:
            raise CorruptImage(f"VHD dynamic header: the cookie is {raw[:8]!r}, not {HEADER_COOKIE!r}")
        _verify(raw, 36, "dynamic header")
        _, _, table, version, entries, block_size, _, parent, stamp, name = _HEADER.unpack_from(raw)
        if version >> 16 != 1:
            raise UnsupportedImage(f"VHD dynamic header: header version {version >> 16}, only 1 is known")
        if block_size & (block_size - 1) or not MIN_BLOCK_SIZE <= block_size <= MAX_BLOCK_SIZE:
            raise CorruptImage(
                f"VHD dynamic header: a block size of {block_size} is no power of two"
                f" from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}"
            )
        locators = tuple(
            Locator(platform, space, length, offset)
            for platform, space, length, _, offset in _LOCATOR.iter_unpack(
                raw[_HEADER.size : _HEADER.size + LOCATORS * _LOCATOR.size]
            )
        )
        text = name.decode("utf-16-be", "replace").split("\0", 1)[0]
        return cls(table, entries, block_size, uuid.UUID(bytes=parent), stamp, text, locators)


def checksum(raw: bytes) -> int:
    """One's complement of the sum of all bytes, modulo 2**32."""
    return ~sum(raw) & 0xFFFF_FFFF


def timestamp(seconds: float) -> int:
    """A POSIX time as seconds since 2000-01-01 UTC, clamped to the field."""
    return min(max(0, int(seconds - _EPOCH.timestamp())), 0xFFFF_FFFF)


def geometry(disk_size: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track of a disk of so many bytes.

    The largest geometry that does not exceed the disk, or the field's maximum.

    Reference: VHD 1.0 appendix "CHS Calculation".
    """
    sectors = min(disk_size // SECTOR, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    per_track, heads, tracks = 17, max(4, (sectors // 17 + 1023) // 1024), sectors // 17
    if tracks >= heads * 1024 or heads > 16:
        per_track, heads, tracks = 31, 16, sectors // 31
    if tracks >= heads * 1024:
        per_track, heads, tracks = 63, 16, sectors // 63
    return tracks // heads, heads, per_track


def bitmap_size(block_size: int) -> int:
    """Bytes of the sector bitmap before a block's data, padded to whole sectors."""
    return -(-block_size // SECTOR // 8 // SECTOR) * SECTOR


def _with_checksum(raw: bytes, offset: int) -> bytes:
    return raw[:offset] + checksum(raw).to_bytes(4, "big") + raw[offset + 4 :]


def _verify(raw: bytes, offset: int, what: str) -> None:
    stored = int.from_bytes(raw[offset : offset + 4], "big")
    actual = checksum(raw[:offset] + bytes(4) + raw[offset + 4 :])
    if stored != actual:
        raise CorruptImage(f"VHD {what}: the checksum is {stored:#010x}, its bytes give {actual:#010x}")
