"""The bytes of a VDI file: a header, a map of 32-bit block numbers, then the blocks.

All integers are little-endian::

    0      text, signature, version        64 + 8 bytes
    72     header of version 1.1           400 bytes (0x190); QEMU writes 384 (0x180), all it fills in
    512    block map                       4 bytes for each block of the disk
    ...    blocks                          each ``block_extra`` + ``block_size`` bytes

Reference: Oracle VirtualBox 7.0 "VDICore.h" (VDIPREHEADER, VDIHEADER1PLUS); QEMU 7.2 "block/vdi.c".
"""

from __future__ import annotations

import dataclasses
import enum
import struct
import uuid
from dataclasses import dataclass, field

from sublet.errors import CorruptImage, UnsupportedImage

SECTOR = 512
SIGNATURE = 0xBEDA107F
SIGNATURE_OFFSET = 64
VERSION_1_1 = 0x0001_0001
HEADER_SIZE = 0x190
MIN_HEADER_SIZE = 0x180
HEADER_AREA = 512
"""Bytes that ``Header.pack`` fills and ``Header.parse`` wants."""

UNALLOCATED = 0xFFFF_FFFF
"""Map entry: never written; reads as the parent, or as zeroes where there is none."""
ZERO = 0xFFFF_FFFE
"""Map entry: reads as zeroes whatever the parent holds."""

DEFAULT_BLOCK_SIZE = 1 << 20
MAX_BLOCKS = 0x3FFB_FF80
"""Blocks of the largest disk: data begins at a MiB, and below 4 GiB."""
DATA_ALIGNMENT = 1 << 20
MAX_DATA_OFFSET = 0xFFFF_FE00
"""The last sector where data may begin, as the header has 32 bits for it."""
NO_UUID = uuid.UUID(int=0)

_TEXT = b"<<< Oracle VM VirtualBox Disk Image >>>\n"
_HEADER = struct.Struct("<64sIIIII256sIIIIIIIQIIII16s16s16s16sIIII")


class Kind(enum.IntEnum):
    """Types of image that the header names."""

    DYNAMIC = 1
    FIXED = 2
    UNDO = 3
    DIFFERENCING = 4


@dataclass(frozen=True)
class Header:
    """A header of version 1.1; sizes and offsets in bytes, from the start of the file."""

    kind: Kind
    disk_size: int
    blocks: int
    map_offset: int
    data_offset: int
    allocated: int = 0
    """Blocks that the data area holds; the next one to hand out has this number."""
    block_size: int = DEFAULT_BLOCK_SIZE
    block_extra: int = 0
    """Bytes in front of each block's data that belong to nobody."""
    flags: int = 0
    comment: bytes = b""
    image: uuid.UUID = NO_UUID
    last_change: uuid.UUID = NO_UUID
    """Changes with each modification of the content; a differencing child remembers it."""
    parent: uuid.UUID = NO_UUID
    parent_change: uuid.UUID = NO_UUID
    header_size: int = HEADER_SIZE
    text: bytes = _TEXT
    geometry: tuple[int, int, int] = (0, 0, 0)
    """Cylinders, heads and sectors for old BIOSes; all 0 means automatic."""
    logical_geometry: tuple[int, int, int, int] = (0, 0, 0, SECTOR)
    tail: bytes = field(default=b"", repr=False)
    """What the file holds between the fields above and byte 512; kept as it is."""

    @classmethod
    def parse(cls, data: bytes) -> Header:
        """The header in the first 512 bytes of a file of any length.

        Raises:
            CorruptImage: A field contradicts the format; the message names it.
            UnsupportedImage: Another version, an undo image, or sectors that are not of 512 bytes.
        """
        header = cls._unpack(data)
        _check_sizes(header)
        return header

    @classmethod
    def _unpack(cls, data: bytes) -> Header:
        if len(data) < _HEADER.size:
            raise CorruptImage(
                f"VDI header: the file has {len(data)} bytes, fewer than a header's {_HEADER.size}"
            )
        fields = _HEADER.unpack_from(data)
        (text, signature, version, header_size, kind, flags, comment, map_offset, data_offset) = fields[:9]
        (cylinders, heads, sectors, sector_size, _, disk_size, block_size, extra, blocks, allocated) = fields[
            9:19
        ]
        if signature != SIGNATURE:
            raise CorruptImage(f"VDI header: signature is {signature:#x}, not {SIGNATURE:#x}")
        _check_version(version, header_size, sector_size)
        return cls(
            kind=_kind(kind),
            disk_size=disk_size,
            blocks=blocks,
            map_offset=map_offset,
            data_offset=data_offset,
            allocated=allocated,
            block_size=block_size,
            block_extra=extra,
            flags=flags,
            comment=comment.rstrip(b"\0"),
            image=uuid.UUID(bytes_le=fields[19]),
            last_change=uuid.UUID(bytes_le=fields[20]),
            parent=uuid.UUID(bytes_le=fields[21]),
            parent_change=uuid.UUID(bytes_le=fields[22]),
            header_size=header_size,
            text=text.rstrip(b"\0"),
            geometry=(cylinders, heads, sectors),
            logical_geometry=(fields[23], fields[24], fields[25], fields[26]),
            tail=data[_HEADER.size : HEADER_AREA],
        )

    def pack(self) -> bytes:
        """512 bytes: the file's first sector."""
        fields = _HEADER.pack(
            self.text,
            SIGNATURE,
            VERSION_1_1,
            self.header_size,
            self.kind,
            self.flags,
            self.comment,
            self.map_offset,
            self.data_offset,
            *self.geometry,
            SECTOR,
            0,
            self.disk_size,
            self.block_size,
            self.block_extra,
            self.blocks,
            self.allocated,
            self.image.bytes_le,
            self.last_change.bytes_le,
            self.parent.bytes_le,
            self.parent_change.bytes_le,
            *self.logical_geometry,
        )
        return (fields + self.tail).ljust(HEADER_AREA, b"\0")

    @property
    def stride(self) -> int:
        """Bytes from one block to the next in the file."""
        return self.block_size + self.block_extra

    @property
    def map_size(self) -> int:
        """Bytes of the block map, not rounded."""
        return 4 * self.blocks

    def block_offset(self, number: int) -> int:
        """Where the data of the file's block ``number`` begins."""
        return self.data_offset + number * self.stride + self.block_extra

    def replace(self, **changes: object) -> Header:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def probe(head: bytes) -> bool:
    """Whether a file that begins with ``head`` says that it is a VDI image."""
    return head[SIGNATURE_OFFSET : SIGNATURE_OFFSET + 4] == SIGNATURE.to_bytes(4, "little")


def blocks_for(disk_size: int, block_size: int) -> int:
    """Blocks that a disk takes, the last one perhaps in part."""
    return -(-disk_size // block_size)


def data_offset_for(blocks: int) -> int:
    """Where the data begins in an image that we make: after the map, at a MiB so that hosts like it."""
    return -(-(HEADER_AREA + 4 * blocks) // DATA_ALIGNMENT) * DATA_ALIGNMENT


def _kind(number: int) -> Kind:
    if number == Kind.UNDO:
        raise UnsupportedImage("VDI header: the image type is undo, which VirtualBox itself no longer opens")
    try:
        return Kind(number)
    except ValueError:
        raise CorruptImage(f"VDI header: the image type is {number}, not 1, 2 or 4") from None


def _check_version(version: int, header_size: int, sector_size: int) -> None:
    if version != VERSION_1_1:
        raise UnsupportedImage(f"VDI header: the version is {version >> 16}.{version & 0xFFFF}, not 1.1")
    if header_size < MIN_HEADER_SIZE:
        raise CorruptImage(f"VDI header: its size is {header_size}, less than {MIN_HEADER_SIZE}")
    if sector_size != SECTOR:
        raise UnsupportedImage(f"VDI header: the sector size is {sector_size}, not {SECTOR}")


def _check_sizes(header: Header) -> None:
    size = header.block_size
    if size < SECTOR or size > 1 << 28 or size & (size - 1):
        raise CorruptImage(f"VDI header: the block size is {size}, not a power of two from 512 to 2^28")
    if header.block_extra > size or header.block_extra % SECTOR:
        raise UnsupportedImage(f"VDI header: blocks have {header.block_extra} extra bytes")
    if header.blocks > MAX_BLOCKS:
        raise UnsupportedImage(f"VDI header: the disk has {header.blocks} blocks, more than {MAX_BLOCKS}")
    if blocks_for(header.disk_size, size) > header.blocks:
        raise CorruptImage(
            f"VDI header: {header.blocks} blocks of {size} bytes are too few for {header.disk_size} bytes"
        )
    if header.map_offset < HEADER_AREA or header.map_offset % SECTOR:
        raise CorruptImage(
            f"VDI header: the block map is at {header.map_offset}, not at a sector after the header"
        )
    if header.data_offset < header.map_offset + header.map_size or header.data_offset % SECTOR:
        raise CorruptImage(f"VDI header: the data is at {header.data_offset}, inside the block map")
