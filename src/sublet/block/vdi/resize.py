"""Growing and shrinking a VDI image in place.

The map lies before the blocks. Where it has no room to grow, the first blocks are moved to the file's end and
a new map is written in their place; one write of the header then makes the new map, new data offset and new
numbering valid at once. Before that write the old image is intact, after it the new one is.
"""

from __future__ import annotations

from typing import Final

from sublet.block.entries import encode
from sublet.block.vdi.blocks import Blocks
from sublet.block.vdi.layout import MAX_BLOCKS, MAX_DATA_OFFSET, SECTOR, UNALLOCATED, Kind, blocks_for
from sublet.errors import UsageError

_PIECE: Final = 1 << 20


def resize(blocks: Blocks, size: int) -> None:
    """Make the disk ``size`` bytes. No other request may be running.

    Raises:
        UsageError: The format cannot hold a disk of that size.
    """
    count = blocks_for(size, blocks.header.block_size)
    if count > MAX_BLOCKS:
        raise UsageError(f"a disk of {size} bytes needs {count} VDI blocks, more than {MAX_BLOCKS}")
    blocks.flush()
    if size < blocks.size:
        _shrink(blocks, size, count)
        return
    needed = blocks_for(blocks.size, blocks.header.block_size)
    if needed < blocks.header.blocks:
        # Blocks past the disk's end are legal; they must not turn up in the disk when it grows.
        _shrink(blocks, blocks.size, needed)
    _grow(blocks, size, count)


def _shrink(blocks: Blocks, size: int, count: int) -> None:
    for number in range(count, blocks.header.blocks):
        blocks.set_entry(number, UNALLOCATED)
    blocks.flush()
    blocks.close_holes(blocks=count)
    blocks.header = blocks.header.replace(disk_size=size)
    blocks.flush()
    blocks.cut_file()
    blocks.resized(size)


def _grow(blocks: Blocks, size: int, count: int) -> None:
    header = blocks.header
    if 4 * count > header.data_offset - header.map_offset:
        _move_map(blocks, count)
    else:
        _fill(blocks, header.map_offset, header.blocks, count)
    _clear_new(blocks, size, count)
    blocks.header = blocks.header.replace(disk_size=size, blocks=count)
    if header.kind is Kind.FIXED:
        _fix(blocks, header.blocks)
    blocks.flush()
    blocks.resized(size)


def _clear_new(blocks: Blocks, size: int, count: int) -> None:
    """Make what lies past the old end zero: the rest of the last block, and what a larger parent has."""
    old, block_size = blocks.size, blocks.cluster_size
    rest = min(size, -(-old // block_size) * block_size)
    blocks.resized(size)
    blocks.write_zeroes(old, rest - old, unmap=False)
    if blocks.below is not None:
        blocks.write_zeroes(rest, size - rest, unmap=False)
    blocks.flush()


def _fill(blocks: Blocks, map_offset: int, first: int, end: int) -> None:
    """Write empty map entries."""
    for start in range(first, end, _PIECE // 4):
        count = min(_PIECE // 4, end - start)
        blocks.file.write(map_offset + 4 * start, UNALLOCATED.to_bytes(4, "little") * count)
    blocks.file.flush()


def _fix(blocks: Blocks, first: int) -> None:
    """Allocate the new blocks of a fixed image, after all others."""
    header = blocks.header
    start = blocks.use()[1] + 1
    end = start + header.blocks - first
    for number in range(start, end):
        blocks.set_entry(first + number - start, number)
    blocks.header = header.replace(allocated=end)
    blocks.file.truncate(header.data_offset + end * header.stride)


def _move_map(blocks: Blocks, count: int) -> None:
    """Put a map of ``count`` entries where the first blocks are."""
    header = blocks.header
    cut = -(-(4 * count) // header.stride)
    if header.data_offset + cut * header.stride > MAX_DATA_OFFSET:
        raise UsageError(f"a map of {count} blocks has no room in this VDI image", remedy="Convert it.")
    blocks.vacate(cut)
    offset = -(-header.data_offset // SECTOR) * SECTOR
    for first, entries in blocks.entries():
        for index, entry in enumerate(entries):
            if entry < blocks.limit:
                entries[index] = entry - cut
        blocks.file.write(offset + 4 * first, encode(entries))
    _fill(blocks, offset, header.blocks, count)
    blocks.header = blocks.header.replace(
        map_offset=offset,
        data_offset=header.data_offset + cut * header.stride,
        allocated=blocks.header.allocated - cut,
    )
    blocks.write_header()
    blocks.file.flush()
    blocks.resized(blocks.size)
