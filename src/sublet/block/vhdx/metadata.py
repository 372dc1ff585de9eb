"""What a VHDX file says of its disk: regions and metadata items, read and checked once when it is opened.

Reference: MS-VHDX 8.0 §2.2.3 "Region Table", §2.6 "Metadata Region".
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sublet.block.vhdx.layout import (
    BAT_REGION,
    CHUNK_SECTORS,
    FILE_PARAMETERS,
    LOGICAL_SECTOR_SIZE,
    MAX_BLOCK_SIZE,
    MAX_DISK_SIZE,
    METADATA_REGION,
    METADATA_TABLE_SIZE,
    MIB,
    MIN_BLOCK_SIZE,
    PARENT_LOCATOR,
    PHYSICAL_SECTOR_SIZE,
    REGION_OFFSETS,
    REGION_TABLE_SIZE,
    VIRTUAL_DISK_ID,
    VIRTUAL_DISK_SIZE,
    MetadataItem,
    Region,
    parse_metadata_table,
    parse_parent_locator,
    parse_regions,
)
from sublet.errors import CorruptImage, UnsupportedImage

Read = Callable[[int, int], bytes]
LEAVE_ALLOCATED: Final = 1
HAS_PARENT: Final = 2
_KNOWN: Final = {
    FILE_PARAMETERS,
    VIRTUAL_DISK_SIZE,
    VIRTUAL_DISK_ID,
    LOGICAL_SECTOR_SIZE,
    PHYSICAL_SECTOR_SIZE,
    PARENT_LOCATOR,
}


@dataclass(frozen=True)
class Geometry:
    """The disk's shape. All sizes in bytes."""

    disk_size: int
    block_size: int
    logical_sector_size: int

    @property
    def chunk_ratio(self) -> int:
        """Payload blocks per sector bitmap block (§2.4.2)."""
        return CHUNK_SECTORS * self.logical_sector_size // self.block_size

    @property
    def blocks(self) -> int:
        """Payload blocks of the disk."""
        return -(-self.disk_size // self.block_size)

    @property
    def entries(self) -> int:
        """Entries that the BAT needs, those of all sector bitmap blocks included (§2.5)."""
        chunks = -(-self.blocks // self.chunk_ratio)
        return chunks * (self.chunk_ratio + 1)

    @property
    def sectors_per_block(self) -> int:
        """Logical sectors of a payload block."""
        return self.block_size // self.logical_sector_size


@dataclass(frozen=True)
class Metadata:
    """Regions and items of a VHDX file."""

    bat: Region
    region: Region
    geometry: Geometry
    disk_id: uuid.UUID
    fixed: bool
    has_parent: bool
    physical_sector_size: int
    items: dict[uuid.UUID, MetadataItem] = field(repr=False)
    locator: dict[str, str] = field(default_factory=dict)

    def position(self, item: uuid.UUID) -> int:
        """Bytes from the file's start to an item."""
        return self.region.offset + self.items[item].offset


def read_metadata(read: Read, file_size: int) -> Metadata:
    """Read regions and items.

    Args:
        read: ``read(offset, size)`` of the file as its log has it.
        file_size: Bytes.

    Raises:
        CorruptImage: A structure is damaged or a value out of its range.
        UnsupportedImage: A required region or item that we do not know.
    """
    bat, region = _find_regions(read, file_size)
    items = parse_metadata_table(read(region.offset, METADATA_TABLE_SIZE), region.length)
    for guid, item in items.items():
        if item.required and guid not in _KNOWN:
            raise UnsupportedImage(f"VHDX metadata: the required item {guid} is unknown")

    def value(guid: uuid.UUID, size: int) -> bytes:
        return _item(read, region, items, guid, size)

    parameters = value(FILE_PARAMETERS, 8)
    flags = int.from_bytes(parameters[4:], "little")
    geometry = _geometry(
        int.from_bytes(value(VIRTUAL_DISK_SIZE, 8), "little"),
        int.from_bytes(parameters[:4], "little"),
        int.from_bytes(value(LOGICAL_SECTOR_SIZE, 4), "little"),
    )
    needed = geometry.entries if flags & HAS_PARENT else _dynamic_entries(geometry)
    if needed * 8 > bat.length:
        raise CorruptImage(f"VHDX BAT: {bat.length} bytes are too few for {geometry.blocks} blocks")
    locator = {}
    if flags & HAS_PARENT:
        if PARENT_LOCATOR not in items:
            raise CorruptImage("VHDX metadata: the parent locator is missing")
        size = items[PARENT_LOCATOR].length
        locator = parse_parent_locator(value(PARENT_LOCATOR, size))
    return Metadata(
        bat=bat,
        region=region,
        geometry=geometry,
        disk_id=uuid.UUID(bytes_le=value(VIRTUAL_DISK_ID, 16)),
        fixed=bool(flags & LEAVE_ALLOCATED),
        has_parent=bool(flags & HAS_PARENT),
        physical_sector_size=int.from_bytes(value(PHYSICAL_SECTOR_SIZE, 4), "little"),
        items=items,
        locator=locator,
    )


def _find_regions(read: Read, file_size: int) -> tuple[Region, Region]:
    """BAT and metadata region of the first region table that is good."""
    for offset in REGION_OFFSETS:
        regions = parse_regions(read(offset, REGION_TABLE_SIZE))
        if regions is None:
            continue
        found = {region.guid: region for region in regions}
        if len(found) != 2 or len(regions) != 2:
            raise CorruptImage("VHDX region table: not one BAT and one metadata region")
        for region in regions:
            if region.offset + region.length > file_size:
                raise CorruptImage(f"VHDX region table: region {region.guid} lies outside the file")
        return found[BAT_REGION], found[METADATA_REGION]
    raise CorruptImage("VHDX region table: both copies are damaged")


def _item(
    read: Read, region: Region, items: dict[uuid.UUID, MetadataItem], guid: uuid.UUID, size: int
) -> bytes:
    item = items.get(guid)
    if item is None or item.length < size:
        raise CorruptImage(f"VHDX metadata: the item {guid} is missing or too short")
    return read(region.offset + item.offset, size)


def _geometry(disk_size: int, block_size: int, sector: int) -> Geometry:
    if sector not in (512, 4096):
        raise CorruptImage(f"VHDX metadata: a logical sector size of {sector}")
    if block_size & (block_size - 1) or not MIN_BLOCK_SIZE <= block_size <= MAX_BLOCK_SIZE:
        raise CorruptImage(
            f"VHDX metadata: a block size of {block_size}, not a power of two of MiB to 256 MiB"
        )
    if disk_size > MAX_DISK_SIZE or disk_size % sector:
        raise CorruptImage(f"VHDX metadata: a disk size of {disk_size}, over 64 TiB or not of whole sectors")
    return Geometry(disk_size, block_size, sector)


def _dynamic_entries(geometry: Geometry) -> int:
    """Entries up to the last payload block, which is as far as a dynamic disk's BAT must go (§2.5)."""
    last = geometry.blocks - 1
    return last + last // geometry.chunk_ratio + 1 if geometry.blocks else 0


def bat_length(geometry: Geometry) -> int:
    """Bytes of a BAT region for a disk, in whole MiB."""
    return max(MIB, -(-geometry.entries * 8 // MIB) * MIB)
