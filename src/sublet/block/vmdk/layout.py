"""The bytes of VMDK extents that are sparse: headers, markers and where an extent's parts go.

Three kinds of file share the idea of a grain directory (GD) whose entries point to grain tables (GT) whose
entries (GTE) point to grains of data. All integers are little-endian, all pointers count 512-byte sectors::

    hosted  "KDMV"    GT of 512 32-bit entries, kept twice; grains 64 KiB, or compressed behind a marker
    COWD    "COWD"    GT of 4096 32-bit entries, made when first needed; grains of a sector (ESX snapshots)
    seSparse          GT of 4096 64-bit entries; grains 4 KiB (snapshots on VMFS 6)

Reference: VMware "Virtual Disk Format 5.0", "Simple Extents", "ESXi Host Sparse Extents" and
"Stream-Optimized Compressed"; QEMU 7.2 "block/vmdk.c" for seSparse, which VMware does not document.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from dataclasses import dataclass

from sublet.errors import CorruptImage, UnsupportedImage

SECTOR = 512
HOSTED_MAGIC = b"KDMV"
COWD_MAGIC = b"COWD"
DESCRIPTOR_SECTORS = 20
"""Sectors that an extent we make keeps for its descriptor, as VMware and QEMU do."""
GD_AT_END = 0xFFFF_FFFF_FFFF_FFFF
"""``gd_offset`` of a stream: the footer knows better."""
GTE_UNALLOCATED = 0
GTE_ZEROED = 1
"""With ``Flags.ZEROED_GRAINS``: the grain reads as zeroes whatever the parent holds."""
GTES_PER_GT = 512
GRAIN_SECTORS = 128
MAX_SECTORS = 0xFFFF_FFFF
"""Sectors that a 32-bit pointer reaches: an extent's file ends at 2 TiB."""
MAX_GRAIN_SECTORS = 1 << 14
MAX_GRAIN_DIRECTORY = 1 << 21
"""Entries of the largest grain directory that is opened: 64 TiB of disk with grains of 64 KiB."""
COMPRESSION_NONE = 0
COMPRESSION_DEFLATE = 1
LINE_ENDS = b"\n \r\n"

_HOSTED = struct.Struct("<4sIIQQQQIQQQB4sH")
_COWD = struct.Struct("<4sIIIIIII")
_MARKER = struct.Struct("<QII")
_SESPARSE = struct.Struct("<26Q")
_SESPARSE_VOLATILE = struct.Struct("<QQQQ")


class Flags(enum.IntFlag):
    """Flags of a hosted extent's header."""

    LINE_ENDS = 1
    REDUNDANT_TABLES = 2
    ZEROED_GRAINS = 4
    COMPRESSED = 1 << 16
    MARKERS = 1 << 17


class Mark(enum.IntEnum):
    """What follows a marker whose ``size`` is 0."""

    END = 0
    GRAIN_TABLE = 1
    GRAIN_DIRECTORY = 2
    FOOTER = 3


@dataclass(frozen=True)
class HostedHeader:
    """Header of a hosted sparse extent; offsets and sizes in sectors."""

    capacity: int
    grain_size: int = GRAIN_SECTORS
    descriptor_offset: int = 0
    descriptor_size: int = 0
    gtes_per_gt: int = GTES_PER_GT
    redundant_gd_offset: int = 0
    gd_offset: int = 0
    overhead: int = 0
    """Where the first grain may be."""
    version: int = 1
    flags: int = Flags.LINE_ENDS | Flags.REDUNDANT_TABLES
    unclean: bool = False
    compression: int = COMPRESSION_NONE

    @classmethod
    def parse(cls, data: bytes, name: str) -> HostedHeader:
        """The header at the start of ``data``; ``name`` is the file's, for messages.

        Raises:
            CorruptImage: A field contradicts the format; the message names it.
            UnsupportedImage: A version or compression that nobody documents.
        """
        if len(data) < _HOSTED.size or data[:4] != HOSTED_MAGIC:
            raise CorruptImage(f"{name}: no VMDK sparse extent header")
        (_, version, flags, capacity, grain_size, descriptor_offset, descriptor_size, gtes) = (
            _HOSTED.unpack_from(data)[:8]
        )
        redundant, directory, overhead, unclean, line_ends, compression = _HOSTED.unpack_from(data)[8:]
        if flags & Flags.LINE_ENDS and line_ends != LINE_ENDS:
            raise CorruptImage(f"{name}: line ends in the header were changed; it was copied as text")
        header = cls(
            capacity=capacity,
            grain_size=grain_size,
            descriptor_offset=descriptor_offset,
            descriptor_size=descriptor_size,
            gtes_per_gt=gtes,
            redundant_gd_offset=redundant,
            gd_offset=directory,
            overhead=overhead,
            version=version,
            flags=flags,
            unclean=bool(unclean),
            compression=compression,
        )
        header._check(name)
        return header

    def pack(self) -> bytes:
        """512 bytes."""
        return _HOSTED.pack(
            HOSTED_MAGIC,
            self.version,
            self.flags,
            self.capacity,
            self.grain_size,
            self.descriptor_offset,
            self.descriptor_size,
            self.gtes_per_gt,
            self.redundant_gd_offset,
            self.gd_offset,
            self.overhead,
            self.unclean,
            LINE_ENDS,
            self.compression,
        ).ljust(SECTOR, b"\0")

    @property
    def compressed(self) -> bool:
        """Whether each grain is a deflate stream behind a marker."""
        return bool(self.flags & Flags.COMPRESSED)

    @property
    def has_zeroed_grains(self) -> bool:
        """Whether ``GTE_ZEROED`` means zeroes."""
        return bool(self.flags & Flags.ZEROED_GRAINS)

    @property
    def grain_tables(self) -> int:
        """Entries of the grain directory."""
        return -(-self.capacity // (self.grain_size * self.gtes_per_gt))

    def replace(self, **changes: object) -> HostedHeader:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def _check(self, name: str) -> None:
        if self.version not in (1, 2, 3):
            raise UnsupportedImage(f"{name}: VMDK header version {self.version}, not 1, 2 or 3")
        _check_grain_size(self.grain_size, name, least=8)
        if not 1 <= self.gtes_per_gt <= GTES_PER_GT:
            raise CorruptImage(f"{name}: {self.gtes_per_gt} entries in a grain table, not 1 to {GTES_PER_GT}")
        if self.grain_tables > MAX_GRAIN_DIRECTORY:
            raise CorruptImage(f"{name}: a capacity of {self.capacity} sectors needs too many grain tables")
        if self.compressed != (self.compression == COMPRESSION_DEFLATE):
            raise UnsupportedImage(
                f"{name}: compression {self.compression} does not fit the flags {self.flags:#x} of the header"
            )


@dataclass(frozen=True)
class CowdHeader:
    """Header of an ESX copy-on-write extent; offsets and sizes in sectors."""

    capacity: int
    grain_size: int
    gd_offset: int
    gd_entries: int
    free_sector: int
    """The first sector that holds nothing yet."""
    version: int = 1
    flags: int = 3

    FREE_SECTOR_OFFSET = 28
    SIZE = 2048
    GTES_PER_GT = 4096

    @classmethod
    def parse(cls, data: bytes, name: str) -> CowdHeader:
        """The header at the start of ``data``.

        Raises:
            CorruptImage: A field contradicts the format; the message names it.
            UnsupportedImage: Another version.
        """
        if len(data) < _COWD.size or data[:4] != COWD_MAGIC:
            raise CorruptImage(f"{name}: no COWD extent header")
        _, version, flags, capacity, grain_size, directory, entries, free = _COWD.unpack_from(data)
        if version != 1:
            raise UnsupportedImage(f"{name}: COWD header version {version}, not 1")
        _check_grain_size(grain_size, name, least=1)
        header = cls(capacity, grain_size, directory, entries, free, version, flags)
        if header.grain_tables > entries:
            raise CorruptImage(
                f"{name}: {entries} grain directory entries are too few for {capacity} sectors"
            )
        if header.grain_tables > MAX_GRAIN_DIRECTORY:
            raise CorruptImage(f"{name}: a capacity of {capacity} sectors needs too many grain tables")
        if directory * SECTOR < _COWD.size:
            raise CorruptImage(f"{name}: the grain directory at sector {directory} is inside the header")
        return header

    def pack(self) -> bytes:
        """2048 bytes; the fields that name a parent or a geometry stay empty, the descriptor has them."""
        fields = _COWD.pack(
            COWD_MAGIC,
            self.version,
            self.flags,
            self.capacity,
            self.grain_size,
            self.gd_offset,
            self.gd_entries,
            self.free_sector,
        )
        return fields.ljust(self.SIZE, b"\0")

    @property
    def grain_tables(self) -> int:
        """Entries of the grain directory that the capacity needs."""
        return -(-self.capacity // (self.grain_size * self.GTES_PER_GT))


@dataclass(frozen=True)
class SeSparseHeader:
    """What reading needs of a seSparse extent's constant header; offsets in sectors."""

    capacity: int
    gd_offset: int
    gd_entries: int
    tables_offset: int
    grains_offset: int
    volatile_offset: int

    MAGIC = 0xCAFE_BABE
    VOLATILE_MAGIC = 0xCAFE_CAFE
    VERSION = 0x2_0000_0001
    GRAIN_SECTORS = 8
    TABLE_SECTORS = 64
    GTES_PER_GT = 4096

    @classmethod
    def parse(cls, data: bytes, name: str) -> SeSparseHeader:
        """The constant header at the start of ``data``.

        Raises:
            CorruptImage: No such header, or its directory is too small.
            UnsupportedImage: Any value that has never been seen, as the format is not documented.
        """
        if len(data) < _SESPARSE.size:
            raise CorruptImage(f"{name}: no seSparse header")
        fields = _SESPARSE.unpack_from(data)
        magic, version, capacity, grain_size, table_size, flags = fields[:6]
        if magic != cls.MAGIC:
            raise CorruptImage(f"{name}: no seSparse header")
        wanted = (cls.VERSION, cls.GRAIN_SECTORS, cls.TABLE_SECTORS, 0)
        if (version, grain_size, table_size, flags) != wanted or any(fields[6:10]):
            raise UnsupportedImage(f"{name}: a seSparse header of version {version:#x} with flags {flags:#x}")
        header = cls(
            capacity=capacity,
            gd_offset=fields[16],
            gd_entries=fields[17] * SECTOR // 8,
            tables_offset=fields[18],
            grains_offset=fields[24],
            volatile_offset=fields[10],
        )
        if header.grain_tables > header.gd_entries or header.grain_tables > MAX_GRAIN_DIRECTORY:
            raise CorruptImage(f"{name}: the grain directory does not fit {capacity} sectors")
        if max(dataclasses.astuple(header)) >= 1 << 48:
            raise CorruptImage(f"{name}: the seSparse header points past any file's end")
        return header

    @property
    def grain_tables(self) -> int:
        """Entries of the grain directory that the capacity needs."""
        return -(-self.capacity // (self.GRAIN_SECTORS * self.GTES_PER_GT))

    @classmethod
    def check_volatile(cls, data: bytes, name: str) -> None:
        """Refuse an extent whose journal was not played back.

        Raises:
            CorruptImage: No volatile header.
            UnsupportedImage: The journal holds changes.
        """
        if len(data) < _SESPARSE_VOLATILE.size:
            raise CorruptImage(f"{name}: no seSparse volatile header")
        magic, _, _, replay = _SESPARSE_VOLATILE.unpack_from(data)
        if magic != cls.VOLATILE_MAGIC:
            raise CorruptImage(f"{name}: no seSparse volatile header")
        if replay:
            raise UnsupportedImage(f"{name}: its journal holds changes that only ESXi can play back")


@dataclass(frozen=True)
class Marker:
    """The sector in front of metadata in a stream, or the 12 bytes in front of a grain."""

    value: int
    """Sectors of metadata that follow, or the grain's first sector on the disk."""
    size: int
    """Bytes of compressed data that follow at byte 12, or 0 for metadata."""
    mark: Mark | int = Mark.END

    GRAIN_BYTES = 12
    PARSED_BYTES = 16

    @classmethod
    def parse(cls, data: bytes) -> Marker:
        """From at least ``PARSED_BYTES``."""
        return cls(*_MARKER.unpack_from(data))

    def pack(self) -> bytes:
        """A whole sector, of metadata's marker."""
        return _MARKER.pack(self.value, self.size, self.mark).ljust(SECTOR, b"\0")

    def pack_grain(self) -> bytes:
        """The 12 bytes in front of a grain's data."""
        return _MARKER.pack(self.value, self.size, 0)[: self.GRAIN_BYTES]


def hosted_plan(
    capacity: int, *, descriptor: bool, zeroed_grains: bool = False, grain_size: int = GRAIN_SECTORS
) -> HostedHeader:
    """Where the parts of a new extent go: descriptor, redundant GD and GTs, GD and GTs, grains.

    Args:
        capacity: Sectors of the disk that the extent holds.
        descriptor: Whether to leave room for an embedded descriptor.
        zeroed_grains: Whether zeroed grains are to be told from unallocated ones (header version 2).
        grain_size: Sectors of a grain.
    """
    header = HostedHeader(capacity=capacity, grain_size=grain_size)
    tables = table_area(header)
    redundant = 1 + DESCRIPTOR_SECTORS
    directory = redundant + tables
    flags = Flags.LINE_ENDS | Flags.REDUNDANT_TABLES | (Flags.ZEROED_GRAINS if zeroed_grains else 0)
    return header.replace(
        descriptor_offset=1 if descriptor else 0,
        descriptor_size=DESCRIPTOR_SECTORS if descriptor else 0,
        redundant_gd_offset=redundant,
        gd_offset=directory,
        overhead=align(directory + tables, grain_size),
        version=2 if zeroed_grains else 1,
        flags=flags,
    )


def stream_plan(capacity: int) -> HostedHeader:
    """The header of a new stream: grains from sector 128 on, the directory at the end."""
    return HostedHeader(
        capacity=capacity,
        descriptor_offset=1,
        descriptor_size=DESCRIPTOR_SECTORS,
        gd_offset=GD_AT_END,
        overhead=GRAIN_SECTORS,
        version=3,
        flags=Flags.LINE_ENDS | Flags.COMPRESSED | Flags.MARKERS,
        compression=COMPRESSION_DEFLATE,
    )


def table_area(header: HostedHeader) -> int:
    """Sectors of one grain directory and its tables."""
    return directory_sectors(header) + header.grain_tables * table_sectors(header)


def directory_sectors(header: HostedHeader) -> int:
    """Sectors of the grain directory."""
    return sectors(4 * header.grain_tables)


def table_sectors(header: HostedHeader) -> int:
    """Sectors of one grain table."""
    return sectors(4 * header.gtes_per_gt)


def sectors(size: int) -> int:
    """Sectors that hold ``size`` bytes."""
    return -(-size // SECTOR)


def align(value: int, step: int) -> int:
    """``value`` rounded up to a multiple of ``step``."""
    return -(-value // step) * step


def _check_grain_size(size: int, name: str, *, least: int) -> None:
    if not least <= size <= MAX_GRAIN_SECTORS or size & (size - 1):
        raise CorruptImage(
            f"{name}: a grain of {size} sectors, not a power of two from {least} to {MAX_GRAIN_SECTORS}"
        )
