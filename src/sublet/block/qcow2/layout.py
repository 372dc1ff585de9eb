"""QCOW2 on disk: the header with its extensions, and the bits of table entries.

Reference: "QCOW2 image format" (QEMU 7.2, docs/interop/qcow2.txt).
"""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import dataclass, field
from typing import Final

from sublet.block.hostfile import HostFile
from sublet.errors import CorruptImage, UnsupportedImage

MAGIC: Final = b"QFI\xfb"
_V2: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_V3: Final = struct.Struct(">QQQII")
V2_SIZE: Final = _V2.size
V3_SIZE: Final = 104
HEADER_SIZE: Final = 112
"""Of the headers that we write: version 3 with the compression type."""

INCOMPATIBLE_DIRTY: Final = 1 << 0
INCOMPATIBLE_CORRUPT: Final = 1 << 1
INCOMPATIBLE_DATA_FILE: Final = 1 << 2
INCOMPATIBLE_COMPRESSION: Final = 1 << 3
INCOMPATIBLE_EXTENDED_L2: Final = 1 << 4
_INCOMPATIBLE_KNOWN: Final = 0x1F
COMPATIBLE_LAZY_REFCOUNTS: Final = 1 << 0
AUTOCLEAR_BITMAPS: Final = 1 << 0
AUTOCLEAR_DATA_FILE_RAW: Final = 1 << 1

EXTENSION_END: Final = 0
EXTENSION_BACKING_FORMAT: Final = 0xE2792ACA
EXTENSION_FEATURE_NAMES: Final = 0x6803F857
EXTENSION_BITMAPS: Final = 0x23852875
EXTENSION_ENCRYPTION: Final = 0x0537BE77
EXTENSION_DATA_FILE: Final = 0x44415441

CRYPT_NONE, CRYPT_AES, CRYPT_LUKS = 0, 1, 2
COMPRESSION_ZLIB, COMPRESSION_ZSTD = 0, 1

COPIED: Final = 1 << 63
COMPRESSED: Final = 1 << 62
ZERO: Final = 1
OFFSET_MASK: Final = 0x00FFFFFFFFFFFE00
SUBCLUSTERS: Final = 32
"""In a cluster of an image with extended L2 entries."""
ALL_ALLOCATED: Final = 0xFFFFFFFF
ALL_ZERO: Final = 0xFFFFFFFF << 32

L1_BYTES_MAXIMUM: Final = 32 << 20
REFTABLE_BYTES_MAXIMUM: Final = 8 << 20
LUKS_BYTES_MAXIMUM: Final = 16 << 20
SNAPSHOTS_MAXIMUM: Final = 65536
NAME_MAXIMUM: Final = 1023
"""Bytes of the backing file's name (§ "Header": "The maximum length is 1023 bytes")."""


@dataclass
class Header:
    """The header and its extensions. Offsets and sizes in bytes unless the name says otherwise."""

    version: int
    size: int
    cluster_bits: int
    l1_entries: int
    l1_offset: int
    reftable_offset: int
    reftable_clusters: int
    snapshot_count: int = 0
    snapshots_offset: int = 0
    crypt_method: int = CRYPT_NONE
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression: int = COMPRESSION_ZLIB
    backing: str | None = None
    backing_offset: int = 0
    """Where the stored name is; ``pack`` finds a new place when it is 0."""
    length: int = HEADER_SIZE
    """Of the fixed part in version 3."""
    extensions: list[tuple[int, bytes]] = field(default_factory=list)
    """Kind and content, in the order of the file; unknown ones are kept."""

    @property
    def cluster_size(self) -> int:
        """512 bytes to 2 MiB."""
        return 1 << self.cluster_bits

    @property
    def extended_l2(self) -> bool:
        """Whether L2 entries are 16 bytes long, with a bitmap of subclusters."""
        return bool(self.incompatible & INCOMPATIBLE_EXTENDED_L2)

    @property
    def has_data_file(self) -> bool:
        """Whether guest data is in a file of its own."""
        return bool(self.incompatible & INCOMPATIBLE_DATA_FILE)

    @property
    def l2_entries(self) -> int:
        """Clusters that an L2 table maps."""
        return self.cluster_size >> (4 if self.extended_l2 else 3)

    @property
    def l1_needed(self) -> int:
        """L1 entries for the disk's size."""
        return l1_entries_for(self.size, self.cluster_size, self.l2_entries)

    def extension(self, kind: int) -> bytes | None:
        """Content of the first extension of that kind."""
        return next((content for found, content in self.extensions if found == kind), None)

    def set_extension(self, kind: int, content: bytes | None) -> None:
        """Replace, add or with None remove an extension."""
        self.extensions = [(found, data) for found, data in self.extensions if found != kind]
        if content is not None:
            self.extensions.insert(0, (kind, content))

    def pack(self) -> bytes:
        """The header's bytes: at most a cluster.

        Raises:
            CorruptImage: It does not fit into a cluster.
        """
        name = (self.backing or "").encode()
        self.length = HEADER_SIZE
        fixed = V2_SIZE if self.version == 2 else HEADER_SIZE
        body = b"".join(_pack_extension(kind, content) for kind, content in self.extensions)
        body += struct.pack(">II", EXTENSION_END, 0)
        self.backing_offset = fixed + len(body) if name else 0
        packed = self._pack_fixed(len(name)) + body + name
        if len(packed) > self.cluster_size:
            raise CorruptImage(
                f"the header with its extensions and the parent's name takes {len(packed)} bytes, "
                f"a cluster has {self.cluster_size}"
            )
        return packed

    def pack_fixed(self) -> bytes:
        """The part without extensions and name: within one sector, so that it is written as a whole."""
        return self._pack_fixed(len((self.backing or "").encode()))

    def _pack_fixed(self, name_size: int) -> bytes:
        head = _V2.pack(
            MAGIC,
            self.version,
            self.backing_offset,
            name_size,
            self.cluster_bits,
            self.size,
            self.crypt_method,
            self.l1_entries,
            self.l1_offset,
            self.reftable_offset,
            self.reftable_clusters,
            self.snapshot_count,
            self.snapshots_offset,
        )
        if self.version == 2:
            return head
        features = (self.incompatible, self.compatible, self.autoclear, self.refcount_order, self.length)
        tail = bytes((self.compression,)) + bytes(7) if self.length > V3_SIZE else b""
        return head + _V3.pack(*features) + tail


def l1_entries_for(size: int, cluster_size: int, l2_entries: int) -> int:
    """L1 entries that map ``size`` bytes."""
    return -(-size // (cluster_size * l2_entries))


def _pack_extension(kind: int, content: bytes) -> bytes:
    return struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)


def read_header(file: HostFile) -> Header:
    """Read and check the header.

    Raises:
        CorruptImage: A field is outside its range.
        UnsupportedImage: A version or a feature that we do not know.
    """
    name = file.path
    data = file.read(0, min(file.size(), 2 << 20))
    if data[:4] != MAGIC or len(data) < V2_SIZE:
        raise CorruptImage(f"{name}: no QCOW2 header")
    fields = _V2.unpack_from(data)
    header = Header(
        version=fields[1],
        size=fields[5],
        cluster_bits=fields[4],
        crypt_method=fields[6],
        l1_entries=fields[7],
        l1_offset=fields[8],
        reftable_offset=fields[9],
        reftable_clusters=fields[10],
        snapshot_count=fields[11],
        snapshots_offset=fields[12],
        backing_offset=fields[2],
    )
    if header.version not in (2, 3):
        raise UnsupportedImage(f"{name}: QCOW2 version {header.version}; sublet knows 2 and 3")
    if not 9 <= header.cluster_bits <= 21:
        raise CorruptImage(f"{name}: cluster_bits is {header.cluster_bits}, not 9 to 21")
    end = _read_version_3(header, data, str(name)) if header.version == 3 else V2_SIZE
    data = data[: header.cluster_size]
    _read_extensions(header, data, end, str(name))
    _read_backing(header, data, fields[3], str(name))
    _check_ranges(header, str(name))
    return header


def _read_version_3(header: Header, data: bytes, name: str) -> int:
    """Fill in what version 3 added; returns the header's length."""
    if len(data) < V3_SIZE:
        raise CorruptImage(f"{name}: the header is cut off")
    fields = _V3.unpack_from(data, V2_SIZE)
    header.incompatible, header.compatible, header.autoclear, header.refcount_order, length = fields
    if length < V3_SIZE or length % 8 or length > min(header.cluster_size, len(data)):
        raise CorruptImage(f"{name}: header_length is {length}")
    unknown = header.incompatible & ~_INCOMPATIBLE_KNOWN
    if unknown:
        raise UnsupportedImage(f"{name}: unknown incompatible_features {unknown:#x}")
    if header.refcount_order > 6:
        raise CorruptImage(f"{name}: refcount_order is {header.refcount_order}, not 0 to 6")
    header.length = length
    header.compression = data[V3_SIZE] if length > V3_SIZE else COMPRESSION_ZLIB
    if header.compression not in (COMPRESSION_ZLIB, COMPRESSION_ZSTD):
        raise UnsupportedImage(f"{name}: compression_type {header.compression}")
    if bool(header.compression) != bool(header.incompatible & INCOMPATIBLE_COMPRESSION):
        raise CorruptImage(f"{name}: compression_type and its incompatible feature bit disagree")
    if header.extended_l2 and header.cluster_bits < 14:
        raise CorruptImage(f"{name}: cluster_bits is {header.cluster_bits}, extended L2 entries need 14")
    return int(length)


def _read_extensions(header: Header, data: bytes, offset: int, name: str) -> None:
    limit = header.backing_offset or len(data)
    while offset + 8 <= min(limit, len(data)):
        kind, size = struct.unpack_from(">II", data, offset)
        if kind == EXTENSION_END:
            return
        offset += 8
        if size > len(data) - offset:
            raise CorruptImage(f"{name}: header extension {kind:#x} has {size} bytes and does not fit")
        header.extensions.append((kind, data[offset : offset + size]))
        offset += -(-size // 8) * 8


def _read_backing(header: Header, data: bytes, size: int, name: str) -> None:
    if not header.backing_offset:
        return
    if not 0 < size <= NAME_MAXIMUM or header.backing_offset + size > len(data):
        raise CorruptImage(f"{name}: backing_file_size is {size} at {header.backing_offset}")
    raw = data[header.backing_offset : header.backing_offset + size]
    header.backing = raw.decode("utf-8", "surrogateescape")


def _check_ranges(header: Header, name: str) -> None:
    size = header.cluster_size
    if header.crypt_method > CRYPT_LUKS:
        raise UnsupportedImage(f"{name}: crypt_method {header.crypt_method}")
    if header.size >= 1 << 63 or header.size % 512:
        raise CorruptImage(f"{name}: size is {header.size}, not a multiple of 512 below 2^63")
    if header.l1_entries * 8 > L1_BYTES_MAXIMUM:
        raise CorruptImage(f"{name}: l1_size is {header.l1_entries}, more than sublet reads")
    if header.l1_entries < header.l1_needed:
        raise CorruptImage(f"{name}: l1_size is {header.l1_entries}, the disk needs {header.l1_needed}")
    if header.reftable_clusters * size > REFTABLE_BYTES_MAXIMUM:
        raise CorruptImage(f"{name}: refcount_table_clusters is {header.reftable_clusters}")
    if header.snapshot_count > SNAPSHOTS_MAXIMUM:
        raise CorruptImage(f"{name}: nb_snapshots is {header.snapshot_count}")
    for field_name, offset in (
        ("l1_table_offset", header.l1_offset),
        ("refcount_table_offset", header.reftable_offset),
        ("snapshots_offset", header.snapshots_offset),
    ):
        if offset % size or offset >= 1 << 62:
            raise CorruptImage(f"{name}: {field_name} is {offset:#x}, not at a cluster")


def table_from_bytes(data: bytes) -> array[int]:
    """Big-endian 64-bit numbers."""
    table = array("Q")
    table.frombytes(data)
    if sys.byteorder == "little":
        table.byteswap()
    return table


def table_to_bytes(table: array[int]) -> bytes:
    """Big-endian 64-bit numbers."""
    copy = array("Q", table)
    if sys.byteorder == "little":
        copy.byteswap()
    return copy.tobytes()


def compressed_range(entry: int, cluster_bits: int) -> tuple[int, int]:
    """(offset, bytes) in the file of what a compressed cluster's L2 entry names.

    Reference: § "Compressed Clusters Descriptor". The size counts whole sectors, so it may be too large.
    """
    shift = 62 - (cluster_bits - 8)
    offset = entry & ((1 << shift) - 1)
    sectors = ((entry >> shift) & ((1 << (cluster_bits - 8)) - 1)) + 1
    return offset, sectors * 512 - (offset & 511)


def compressed_entry(offset: int, size: int, cluster_bits: int) -> int:
    """L2 entry of ``size`` compressed bytes at ``offset``."""
    shift = 62 - (cluster_bits - 8)
    sectors = ((offset & 511) + size + 511) // 512
    return COMPRESSED | (sectors - 1) << shift | offset
