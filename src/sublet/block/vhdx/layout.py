"""Structures of a VHDX file. All numbers are little-endian, GUIDs in Microsoft's mixed order.

Reference: MS-VHDX 8.0 "Virtual Hard Disk v2 (VHDX) File Format": §2.2 "Header Section", §2.5 "BAT", §2.6
"Metadata Region".
"""

from __future__ import annotations

import enum
import struct
import uuid
from dataclasses import dataclass

from sublet.block.vhdx.crc32c import crc32c
from sublet.errors import CorruptImage, UnsupportedImage

KIB, MIB = 1 << 10, 1 << 20
FILE_SIGNATURE = b"vhdxfile"
HEADER_OFFSETS = (64 * KIB, 128 * KIB)
HEADER_SIZE = 4 * KIB
REGION_OFFSETS = (192 * KIB, 256 * KIB)
REGION_TABLE_SIZE = 64 * KIB
METADATA_TABLE_SIZE = 64 * KIB
HEADER_SECTION = MIB
"""The first MiB holds identifier, headers and region tables, and nothing else."""

MAX_REGIONS = 2047
MAX_METADATA_ITEMS = 2047
MIN_BLOCK_SIZE, MAX_BLOCK_SIZE = MIB, 256 * MIB
MAX_DISK_SIZE = 64 << 40
BITMAP_BLOCK_SIZE = MIB
CHUNK_SECTORS = 1 << 23
"""Logical sectors that one sector bitmap block covers (§2.4.2)."""

NO_GUID = uuid.UUID(int=0)
BAT_REGION = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA_REGION = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
VIRTUAL_DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
VIRTUAL_DISK_ID = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR_SIZE = uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR_SIZE = uuid.UUID("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
VHDX_LOCATOR_TYPE = uuid.UUID("b04aefb7-d19e-4a81-b789-25b8e9445913")

_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_REGION_HEADER = struct.Struct("<4sII4x")
_REGION_ENTRY = struct.Struct("<16sQII")
_METADATA_HEADER = struct.Struct("<8s2xH20x")
_METADATA_ENTRY = struct.Struct("<16sIII4x")
_LOCATOR_HEADER = struct.Struct("<16s2xH")
_LOCATOR_ENTRY = struct.Struct("<IIHH")
_CREATOR = "sublet".encode("utf-16-le").ljust(512, b"\0")


class BlockState(enum.IntEnum):
    """State of a payload block; bitmap blocks use only the first and ``PRESENT`` (§2.5.1)."""

    NOT_PRESENT = 0
    UNDEFINED = 1
    ZERO = 2
    UNMAPPED = 3
    PRESENT = 6
    PARTIAL = 7


STATES_WITH_DATA = frozenset({BlockState.PRESENT, BlockState.PARTIAL})


def bat_entry(state: BlockState, offset: int = 0) -> int:
    """A BAT entry; ``offset`` in bytes, a multiple of 1 MiB."""
    return offset // MIB << 20 | state


def split_entry(entry: int) -> tuple[BlockState, int]:
    """State and file offset in bytes of a BAT entry.

    Raises:
        CorruptImage: The state is 4 or 5.
    """
    state = entry & 7
    if state in (4, 5):
        raise CorruptImage(f"VHDX BAT: a block has the reserved state {state}")
    return BlockState(state), (entry >> 20) * MIB


def file_identifier() -> bytes:
    """Signature and creator (§2.2.1)."""
    return FILE_SIGNATURE + _CREATOR


@dataclass(frozen=True)
class Header:
    """One of the two headers; the valid one of the higher sequence number counts (§2.2.2).

    Attributes:
        sequence_number: Which header is the newer.
        file_write_guid: Changed before the first write since opening.
        data_write_guid: Changed before the first write that a guest could see.
        log_guid: Whose entries the log holds; zero when it is empty.
        log_length, log_offset: Bytes, multiples of 1 MiB.
    """

    sequence_number: int
    file_write_guid: uuid.UUID
    data_write_guid: uuid.UUID
    log_guid: uuid.UUID = NO_GUID
    log_length: int = MIB
    log_offset: int = MIB

    def pack(self) -> bytes:
        """The 4 KiB, checksum included."""
        raw = _HEADER.pack(
            b"head",
            0,
            self.sequence_number,
            self.file_write_guid.bytes_le,
            self.data_write_guid.bytes_le,
            self.log_guid.bytes_le,
            0,
            1,
            self.log_length,
            self.log_offset,
        )
        return with_checksum(raw.ljust(HEADER_SIZE, b"\0"))

    @classmethod
    def parse(cls, raw: bytes) -> Header | None:
        """Read a header of 4 KiB; None when signature or checksum is wrong.

        Raises:
            CorruptImage: The log lies at an impossible place.
            UnsupportedImage: Of another version.
        """
        if len(raw) < HEADER_SIZE or raw[:4] != b"head" or not checksum_is_good(raw):
            return None
        _, _, sequence, file_guid, data_guid, log_guid, log_version, version, length, offset = (
            _HEADER.unpack_from(raw)
        )
        if version != 1:
            raise UnsupportedImage(f"VHDX header: version {version}, only 1 is known")
        if log_version and any(log_guid):
            raise UnsupportedImage(f"VHDX header: log version {log_version}, only 0 is known")
        if length % MIB or offset % MIB or (length and offset < MIB):
            raise CorruptImage(f"VHDX header: the log lies at {offset}, {length} bytes; not on whole MiB")
        file_write, data_write, log = (uuid.UUID(bytes_le=guid) for guid in (file_guid, data_guid, log_guid))
        return cls(sequence, file_write, data_write, log, length, offset)


@dataclass(frozen=True)
class Region:
    """An entry of the region table, in bytes (§2.2.3.2)."""

    guid: uuid.UUID
    offset: int
    length: int
    required: bool = True


def pack_regions(regions: list[Region]) -> bytes:
    """A region table of 64 KiB, checksum included."""
    raw = _REGION_HEADER.pack(b"regi", 0, len(regions))
    for region in regions:
        raw += _REGION_ENTRY.pack(region.guid.bytes_le, region.offset, region.length, region.required)
    return with_checksum(raw.ljust(REGION_TABLE_SIZE, b"\0"))


def parse_regions(raw: bytes) -> list[Region] | None:
    """Entries of a region table of 64 KiB; None when signature or checksum is wrong.

    Raises:
        CorruptImage: Too many entries, or one that is not on whole MiB.
        UnsupportedImage: An unknown region is marked as required.
    """
    if len(raw) < REGION_TABLE_SIZE or raw[:4] != b"regi" or not checksum_is_good(raw):
        return None
    count = _REGION_HEADER.unpack_from(raw)[2]
    if count > MAX_REGIONS:
        raise CorruptImage(f"VHDX region table: {count} entries, at most {MAX_REGIONS} are allowed")
    entries = raw[_REGION_HEADER.size : _REGION_HEADER.size + count * _REGION_ENTRY.size]
    regions = []
    for guid, offset, length, required in _REGION_ENTRY.iter_unpack(entries):
        region = Region(uuid.UUID(bytes_le=guid), offset, length, bool(required & 1))
        if region.guid not in (BAT_REGION, METADATA_REGION):
            if region.required:
                raise UnsupportedImage(f"VHDX region table: the required region {region.guid} is unknown")
            continue
        if offset % MIB or offset < MIB or length % MIB or not length:
            raise CorruptImage(f"VHDX region table: region {region.guid} at {offset}, {length} bytes")
        regions.append(region)
    return regions


@dataclass(frozen=True)
class MetadataItem:
    """An entry of the metadata table (§2.6.1.2).

    Attributes:
        guid: Which item.
        offset: Bytes from the start of the metadata region.
        length: Bytes.
        required: Whether a reader must know it.
    """

    guid: uuid.UUID
    offset: int
    length: int
    is_virtual_disk: bool = False
    required: bool = True
    is_user: bool = False


def pack_metadata_table(items: list[MetadataItem]) -> bytes:
    """A metadata table of 64 KiB."""
    raw = _METADATA_HEADER.pack(b"metadata", len(items))
    for item in items:
        flags = item.is_user | item.is_virtual_disk << 1 | item.required << 2
        raw += _METADATA_ENTRY.pack(item.guid.bytes_le, item.offset, item.length, flags)
    return raw.ljust(METADATA_TABLE_SIZE, b"\0")


def parse_metadata_table(raw: bytes, region_length: int) -> dict[uuid.UUID, MetadataItem]:
    """System items of a metadata table of 64 KiB, by GUID.

    Raises:
        CorruptImage: Wrong signature, or an item outside the region or inside the table.
    """
    if len(raw) < METADATA_TABLE_SIZE or raw[:8] != b"metadata":
        raise CorruptImage("VHDX metadata table: the signature is missing")
    count = _METADATA_HEADER.unpack_from(raw)[1]
    if count > MAX_METADATA_ITEMS:
        raise CorruptImage(f"VHDX metadata table: {count} entries, at most {MAX_METADATA_ITEMS} are allowed")
    items = {}
    entries = raw[_METADATA_HEADER.size : _METADATA_HEADER.size + count * _METADATA_ENTRY.size]
    for guid, offset, length, flags in _METADATA_ENTRY.iter_unpack(entries):
        item = MetadataItem(
            uuid.UUID(bytes_le=guid), offset, length, bool(flags & 2), bool(flags & 4), bool(flags & 1)
        )
        if length > MIB or (length and not METADATA_TABLE_SIZE <= offset <= region_length - length):
            raise CorruptImage(f"VHDX metadata table: item {item.guid} at {offset}, {length} bytes")
        if not item.is_user:
            items[item.guid] = item
    return items


def pack_parent_locator(values: dict[str, str]) -> bytes:
    """A parent locator of key and value pairs (§2.6.2.6)."""
    start = _LOCATOR_HEADER.size + len(values) * _LOCATOR_ENTRY.size
    entries, text = b"", b""
    for pair in values.items():
        key, value = (part.encode("utf-16-le") for part in pair)
        at = start + len(text)
        entries += _LOCATOR_ENTRY.pack(at, at + len(key), len(key), len(value))
        text += key + value
    return _LOCATOR_HEADER.pack(VHDX_LOCATOR_TYPE.bytes_le, len(values)) + entries + text


def parse_parent_locator(raw: bytes) -> dict[str, str]:
    """Key and value pairs of a parent locator.

    Raises:
        CorruptImage: A pair lies outside the item.
        UnsupportedImage: A locator of another type.
    """
    if len(raw) < _LOCATOR_HEADER.size:
        raise CorruptImage(f"VHDX parent locator: {len(raw)} bytes are too few")
    guid, count = _LOCATOR_HEADER.unpack_from(raw)
    if uuid.UUID(bytes_le=guid) != VHDX_LOCATOR_TYPE:
        raise UnsupportedImage(f"VHDX parent locator: of unknown type {uuid.UUID(bytes_le=guid)}")
    end = _LOCATOR_HEADER.size + count * _LOCATOR_ENTRY.size
    if end > len(raw):
        raise CorruptImage(f"VHDX parent locator: {count} pairs do not fit into {len(raw)} bytes")
    pairs = {}
    for key_at, value_at, key_length, value_length in _LOCATOR_ENTRY.iter_unpack(
        raw[_LOCATOR_HEADER.size : end]
    ):
        if key_at + key_length > len(raw) or value_at + value_length > len(raw):
            raise CorruptImage("VHDX parent locator: a pair lies outside the item")
        key = raw[key_at : key_at + key_length].decode("utf-16-le", "replace")
        pairs[key] = raw[value_at : value_at + value_length].decode("utf-16-le", "replace")
    return pairs


def with_checksum(raw: bytes) -> bytes:
    """``raw`` with its CRC-32C in bytes 4 to 7."""
    zeroed = raw[:4] + bytes(4) + raw[8:]
    return raw[:4] + crc32c(zeroed).to_bytes(4, "little") + raw[8:]


def checksum_is_good(raw: bytes) -> bool:
    """Whether bytes 4 to 7 hold the CRC-32C of the rest."""
    zeroed = raw[:4] + bytes(4) + raw[8:]
    return crc32c(zeroed) == int.from_bytes(raw[4:8], "little")
