"""Growing and shrinking VMDK disks of every kind that can be.

An extent is never shorter than the descriptor says: it grows before the descriptor does, and shrinks after.

Deviation: the sectors of a descriptor that changed are written in place. A crash of the host in just that
moment can leave half of a descriptor that is longer than a sector and spread over several; the extents stay
whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sublet.block.vmdk.build import SPLIT_SECTORS, extent_name, write_extent
from sublet.block.vmdk.descriptor import ExtentLine, ExtentType
from sublet.block.vmdk.layout import SECTOR
from sublet.errors import UsageError

if TYPE_CHECKING:
    from sublet.block.vmdk.image import VmdkImage

_SPLIT = ("twoGbMaxExtentSparse", "twoGbMaxExtentFlat")


def resize(image: VmdkImage, size: int) -> None:
    """Make the disk ``size`` bytes. No other request may be running.

    Raises:
        UsageError: A part of a device, or an extent that is kept otherwise, would have to change.
    """
    image.flush()
    if image.is_embedded:
        _resize_embedded(image, size)
    elif size < image.size:
        _shrink(image, size // SECTOR)
    else:
        _grow(image, size // SECTOR)


def _resize_embedded(image: VmdkImage, size: int) -> None:
    """The extent's header counts; the line says the same for other programs."""
    image.disk_extents[0].resize(size)
    first = image.descriptor.extents[0]
    image.replace_extents([replace(first, sectors=size // SECTOR)])


def _shrink(image: VmdkImage, sectors: int) -> None:
    lines, kept, rest = image.descriptor.extents, list[ExtentLine](), sectors
    for line in lines:
        if rest or not kept:
            kept.append(replace(line, sectors=min(rest, line.sectors)))
            rest -= kept[-1].sectors
    last = image.disk_extents[len(kept) - 1]
    _check_resizable(lines[len(kept) - 1 :])
    image.replace_extents(kept)
    last.resize(kept[-1].sectors * SECTOR)
    image.replace_extents(kept)
    for line in lines[len(kept) :]:
        if line.filename:
            image.forget_file(line.filename)


def _grow(image: VmdkImage, sectors: int) -> None:
    lines = list(image.descriptor.extents)
    limit = SPLIT_SECTORS if image.descriptor.create_type in _SPLIT else sectors
    rest = sectors - image.size // SECTOR
    last = lines[-1]
    _check_resizable([last])
    more = min(rest, max(0, limit - last.sectors))
    if more:
        _grow_last(image, last, more)
        lines[-1] = replace(last, sectors=last.sectors + more)
        rest -= more
    while rest:
        count = min(rest, limit)
        lines.append(_add_extent(image, last, len(lines) + 1, count))
        rest -= count
    old = image.size
    image.replace_extents(lines)
    if image.backing is not None and image.backing.size > old:
        image.write_zeroes(old, image.size - old, unmap=False)
        image.flush()


def _grow_last(image: VmdkImage, line: ExtentLine, more: int) -> None:
    image.disk_extents[-1].resize((line.sectors + more) * SECTOR)


def _add_extent(image: VmdkImage, like: ExtentLine, number: int, count: int) -> ExtentLine:
    """Create another extent of a split disk."""
    name = extent_name(image.path, image.descriptor.create_type, number)
    line = ExtentLine("RW", count, like.type, name)
    write_extent(image.path.parent / name, line, image.host_files)
    return line


def _check_resizable(lines: list[ExtentLine]) -> None:
    for line in lines:
        if line.type is ExtentType.FLAT and line.offset:
            raise UsageError(f"the extent {line.filename} is a part of something and cannot be resized")
        if line.type in (ExtentType.VMFS_SPARSE, ExtentType.SE_SPARSE):
            raise UsageError(f"VMDK extents of type {line.type.value} cannot be resized")
