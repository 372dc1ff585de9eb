"""Checking and repairing a VDI image's block map.

Reference: QEMU 7.2 "block/vdi.c", which counts the same errors; it takes a count of blocks that is too
large for an error, where we see a leak.
"""

from __future__ import annotations

from collections.abc import Iterator

from sublet.block.description import CheckReport
from sublet.block.vdi.blocks import Blocks
from sublet.block.vdi.layout import UNALLOCATED, ZERO


def check(blocks: Blocks, *, repair: bool) -> CheckReport:
    """Compare the map with the header and the file. The map must be flushed.

    Repair gives each of two disk blocks that share a file block a copy, forgets blocks that no file can have,
    lengthens a file that was cut, corrects the header's count and closes holes.

    Raises:
        UnsupportedImage: The image is too large to count.
    """
    report = CheckReport()
    _check_entries(blocks, report, repair)
    _check_length(blocks, report, repair)
    _check_count(blocks, report, repair)
    if repair:
        blocks.flush()
        if report.leaks_repaired:
            blocks.close_holes()
            blocks.flush()
            blocks.cut_file()
    return report


def _check_entries(blocks: Blocks, report: CheckReport, repair: bool) -> None:
    limit = blocks.limit
    users, highest = blocks.use()
    seen = bytearray(len(users))
    end = max(highest + 1, min(blocks.header.allocated, limit))
    for number, entry in _allocated(blocks):
        if entry >= limit:
            report.error(f"block map: disk block {number} is file block {entry} of {limit}", repaired=repair)
            if repair:
                blocks.set_entry(number, UNALLOCATED)
        elif seen[entry]:
            report.error(
                f"block map: file block {entry} is used twice, also by disk block {number}", repaired=repair
            )
            if repair:
                blocks.copy_block(entry, end)
                blocks.set_entry(number, end)
                end += 1
        else:
            seen[entry] = 1
    if repair and report.errors:
        blocks.header = blocks.header.replace(allocated=end)
        blocks.flush()


def _allocated(blocks: Blocks) -> Iterator[tuple[int, int]]:
    for first, entries in blocks.entries():
        for index, entry in enumerate(entries):
            if entry not in (UNALLOCATED, ZERO):
                yield first + index, entry


def _check_length(blocks: Blocks, report: CheckReport, repair: bool) -> None:
    highest = blocks.use()[1]
    needed = blocks.header.data_offset + (highest + 1) * blocks.header.stride
    if highest >= 0 and needed > blocks.file.size():
        report.error(
            f"the file ends at {blocks.file.size()}, before its last block's end at {needed}", repaired=repair
        )
        if repair:
            blocks.file.truncate(needed)


def _check_count(blocks: Blocks, report: CheckReport, repair: bool) -> None:
    users, highest = blocks.use()
    used, allocated = users.count(1), blocks.header.allocated
    if allocated <= highest:
        report.error(
            f"header: {allocated} blocks are allocated, but block {highest} is in use", repaired=repair
        )
        if repair:
            blocks.header = blocks.header.replace(allocated=highest + 1)
    leaked = max(allocated, highest + 1) - used
    if leaked > 0:
        report.leak(f"{leaked} blocks of the file are not in the block map", count=leaked, repaired=repair)
