"""Telling, opening and creating VHDX files.

A new file is laid out as: header section, log, metadata region, BAT region, blocks; each of whole MiB.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sublet.block.chain import Chain
from sublet.block.description import BackingReference
from sublet.block.format import CreateOption, Image, read_options
from sublet.block.hostfile import HostFile, HostFiles, new_file
from sublet.block.vhdx import parent as parents
from sublet.block.vhdx.image import VhdxImage
from sublet.block.vhdx.journal import read_headers
from sublet.block.vhdx.layout import (
    BAT_REGION,
    FILE_PARAMETERS,
    FILE_SIGNATURE,
    HEADER_OFFSETS,
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
    VIRTUAL_DISK_ID,
    VIRTUAL_DISK_SIZE,
    BlockState,
    Header,
    MetadataItem,
    Region,
    bat_entry,
    file_identifier,
    pack_metadata_table,
    pack_parent_locator,
    pack_regions,
)
from sublet.block.vhdx.metadata import HAS_PARENT, LEAVE_ALLOCATED, Geometry, bat_length
from sublet.errors import UsageError
from sublet.units import parse_size

_OPTIONS: Final = (
    CreateOption("subformat", "dynamic", "dynamic, or fixed"),
    CreateOption("block_size", "", "bytes of a block, a power of two from 1M to 256M; 32M, 2M with a parent"),
    CreateOption("logical_sector_size", "512", "512, or 4096; with a parent, as the parent's"),
)
_LOG_OFFSET, _METADATA_OFFSET, _BAT_OFFSET = MIB, 2 * MIB, 3 * MIB
_PIECE_ENTRIES: Final = 1 << 17


class VhdxFormat:
    """The VHDX format (``ImageFormat``)."""

    name = "vhdx"
    extensions = (".vhdx", ".avhdx")
    options = _OPTIONS

    def probe(self, head: bytes, tail: bytes, size: int) -> bool:
        """The file identifier's signature at the start."""
        return head[:8] == FILE_SIGNATURE

    def open(self, path: Path, *, readonly: bool, chain: Chain, check: bool = False) -> Image:
        """See ``ImageFormat.open``."""
        file = chain.open_file(path, readonly=readonly)
        try:
            return VhdxImage(file, chain, check=check)
        except BaseException:
            file.close()
            raise

    def create(
        self,
        path: Path,
        size: int,
        *,
        options: Mapping[str, str],
        backing: BackingReference | None,
        files: HostFiles,
    ) -> None:
        """See ``ImageFormat.create``."""
        values = read_options(self.name, self.options, options)
        fixed = _read_subformat(values["subformat"], backing)
        locator: dict[str, str] = {}
        sector = _read_sector_size(values["logical_sector_size"])
        if backing is not None:
            linkage, sector = _look_at_parent(path, backing, files)
            locator = parents.locator_values(backing.path, linkage)
        block_size = _read_block_size(values["block_size"] or ("2M" if locator else "32M"))
        if size > MAX_DISK_SIZE or size % sector:
            raise UsageError(f"a VHDX of {size} bytes: at most 64 TiB, in sectors of {sector}")
        with new_file(files, path) as file:
            _write(file, Geometry(size, block_size, sector), locator, fixed=fixed)


def _read_subformat(text: str, backing: BackingReference | None) -> bool:
    """Whether the disk is to be fixed."""
    if text not in ("dynamic", "fixed"):
        raise UsageError(f"subformat={text}: write dynamic or fixed")
    if text == "fixed" and backing is not None:
        raise UsageError("a fixed VHDX has no parent")
    return text == "fixed"


def _read_sector_size(text: str) -> int:
    if text not in ("512", "4096", "4K"):
        raise UsageError(f"logical_sector_size={text}: write 512 or 4096")
    return 512 if text == "512" else 4096


def _read_block_size(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise UsageError(f"block_size={text}: {error}") from error
    if size & (size - 1) or not MIN_BLOCK_SIZE <= size <= MAX_BLOCK_SIZE:
        raise UsageError(f"block_size={text}: must be a power of two from 1M to 256M")
    return size


def _look_at_parent(path: Path, backing: BackingReference, files: HostFiles) -> tuple[uuid.UUID, int]:
    """Data write GUID and logical sector size of the parent."""
    if backing.format not in (None, "vhdx"):
        raise UsageError(f"the parent of a VHDX must be a VHDX, not {backing.format}")
    place = path.parent / backing.path
    chain = Chain.start(place, files=files, parents=False)
    file = chain.open_file(place, readonly=True)
    try:
        header, _ = read_headers(file)
        image = VhdxImage(file, chain, check=True)
        return header.data_write_guid, image.block_size
    finally:
        file.close()


def _items(geometry: Geometry, locator: dict[str, str], fixed: bool) -> list[tuple[uuid.UUID, bool, bytes]]:
    """Metadata items: GUID, whether it is of the virtual disk, and value (§2.6.2)."""
    flags = fixed * LEAVE_ALLOCATED | bool(locator) * HAS_PARENT
    sector = geometry.logical_sector_size.to_bytes(4, "little")
    parameters = geometry.block_size.to_bytes(4, "little") + flags.to_bytes(4, "little")
    items = [
        (FILE_PARAMETERS, False, parameters),
        (VIRTUAL_DISK_SIZE, True, geometry.disk_size.to_bytes(8, "little")),
        (VIRTUAL_DISK_ID, True, uuid.uuid4().bytes_le),
        (LOGICAL_SECTOR_SIZE, True, sector),
        (PHYSICAL_SECTOR_SIZE, True, (4096).to_bytes(4, "little")),
    ]
    return [*items, (PARENT_LOCATOR, False, pack_parent_locator(locator))] if locator else items


def _metadata_region(geometry: Geometry, locator: dict[str, str], fixed: bool) -> bytes:
    table, values = [], b""
    for guid, of_disk, value in _items(geometry, locator, fixed):
        table.append(MetadataItem(guid, METADATA_TABLE_SIZE + len(values), len(value), of_disk))
        values += value
    return pack_metadata_table(table) + values


def _write(file: HostFile, geometry: Geometry, locator: dict[str, str], *, fixed: bool) -> None:
    """The file identifier comes last: until it is there, the file is no VHDX."""
    bat = Region(BAT_REGION, _BAT_OFFSET, bat_length(geometry))
    regions = pack_regions([bat, Region(METADATA_REGION, _METADATA_OFFSET, MIB)])
    for offset in REGION_OFFSETS:
        file.write(offset, regions)
    file.write(_METADATA_OFFSET, _metadata_region(geometry, locator, fixed))
    end = bat.offset + bat.length
    if fixed:
        _write_fixed_bat(file, geometry, end)
        end += geometry.blocks * geometry.block_size
    file.truncate(end)
    guids = uuid.uuid4(), uuid.uuid4()
    for sequence, offset in enumerate(HEADER_OFFSETS, 1):
        file.write(offset, Header(sequence, *guids, log_offset=_LOG_OFFSET).pack())
    file.flush()
    file.write(0, file_identifier())
    file.flush()


def _write_fixed_bat(file: HostFile, geometry: Geometry, data: int) -> None:
    """Every block present, one behind the other from ``data`` on."""
    ratio = geometry.chunk_ratio
    for first in range(0, geometry.blocks, ratio):
        last = min(first + ratio, geometry.blocks)
        at = _BAT_OFFSET + (first + first // ratio) * 8
        for start in range(first, last, _PIECE_ENTRIES):
            stop = min(start + _PIECE_ENTRIES, last)
            file.write(at + (start - first) * 8, _present(start, stop, geometry.block_size, data))


def _present(start: int, stop: int, block_size: int, data: int) -> bytes:
    entries = (bat_entry(BlockState.PRESENT, data + block * block_size) for block in range(start, stop))
    return b"".join(entry.to_bytes(8, "little") for entry in entries)
