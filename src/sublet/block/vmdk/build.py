"""The files of a new VMDK disk's extents: their kinds, names and first content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sublet.block.entries import encode
from sublet.block.hostfile import HostFile, HostFiles
from sublet.block.vmdk.descriptor import ExtentLine, ExtentType
from sublet.block.vmdk.layout import (
    SECTOR,
    CowdHeader,
    HostedHeader,
    directory_sectors,
    hosted_plan,
    sectors,
    table_sectors,
)

SPLIT_SECTORS: Final = 4_192_256
"""Sectors of an extent of a split disk, 2047 MiB, as VMware makes them."""
_COWD_GRAIN: Final = 1


@dataclass(frozen=True)
class Kind:
    """A value of ``subformat``."""

    type: ExtentType
    suffix: str
    """What extents' names add to the disk's, with the extent's number; empty: one file has everything."""
    split: bool = False
    child: bool = False
    """Whether it can have a parent."""


KINDS: Final = {
    "monolithicSparse": Kind(ExtentType.SPARSE, "", child=True),
    "monolithicFlat": Kind(ExtentType.FLAT, "-flat"),
    "twoGbMaxExtentSparse": Kind(ExtentType.SPARSE, "-s{:03}", split=True, child=True),
    "twoGbMaxExtentFlat": Kind(ExtentType.FLAT, "-f{:03}", split=True),
    "streamOptimized": Kind(ExtentType.SPARSE, ""),
    "vmfs": Kind(ExtentType.VMFS, "-flat"),
    "vmfsSparse": Kind(ExtentType.VMFS_SPARSE, "-delta", child=True),
}


def extent_name(path: Path, create_type: str, number: int) -> str:
    """File name of an extent, counted from 1."""
    return path.stem + KINDS[create_type].suffix.format(number) + path.suffix


def write_extent(
    path: Path,
    line: ExtentLine,
    files: HostFiles,
    made: list[Path] | None = None,
    *,
    zeroed_grains: bool = False,
) -> None:
    """Create the file of an extent that reads as zeroes or as the parent.

    Args:
        made: Takes ``path`` once the file is there.

    Raises:
        HostRefused: It exists, or cannot be written.
    """
    file = files.create(path)
    if made is not None:
        made.append(path)
    try:
        if line.type in (ExtentType.FLAT, ExtentType.VMFS):
            file.truncate(line.sectors * SECTOR)
        elif line.type is ExtentType.VMFS_SPARSE:
            _write_cowd(file, line.sectors)
        else:
            write_hosted(file, hosted_plan(line.sectors, descriptor=False, zeroed_grains=zeroed_grains), b"")
    finally:
        file.close()


def write_hosted(file: HostFile, header: HostedHeader, descriptor: bytes) -> None:
    """Directories and empty tables; with a descriptor, which makes it a disk, the header comes last."""
    if descriptor:
        file.write(header.descriptor_offset * SECTOR, descriptor)
    for start in (header.redundant_gd_offset, header.gd_offset):
        first, step = start + directory_sectors(header), table_sectors(header)
        file.write(start * SECTOR, encode(range(first, first + header.grain_tables * step, step)))
    file.truncate(header.overhead * SECTOR)
    if descriptor:
        file.flush()
    file.write(0, header.pack())


def _write_cowd(file: HostFile, capacity: int) -> None:
    start = CowdHeader.SIZE // SECTOR
    tables = max(1, CowdHeader(capacity, _COWD_GRAIN, start, 0, 0).grain_tables)
    end = start + sectors(4 * tables)
    header = CowdHeader(capacity, _COWD_GRAIN, start, tables, end)
    file.truncate(end * SECTOR)
    file.write(0, header.pack())
