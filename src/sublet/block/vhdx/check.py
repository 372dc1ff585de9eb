"""Looking for damage in a VHDX: headers, region tables, and the blocks that the table names.

Errors: a block outside the file or over metadata, two that share storage, a reserved state. Leaks: a header
or region table of which only one copy is good, and space behind all data.
"""

from __future__ import annotations

import itertools

from sublet.block.description import CheckReport
from sublet.block.hostfile import HostFile
from sublet.block.vhdx.blocks import BlockMap
from sublet.block.vhdx.layout import (
    HEADER_OFFSETS,
    HEADER_SIZE,
    REGION_OFFSETS,
    REGION_TABLE_SIZE,
    BlockState,
    Header,
    pack_regions,
    parse_regions,
)
from sublet.errors import ImageError


def check_blocks(file: HostFile, blocks: BlockMap, *, repair: bool) -> CheckReport:
    """Check the whole file; ``repair`` rewrites copies, and drops blocks that have no storage in the file."""
    report = CheckReport()
    if repair:
        blocks.commit()
        blocks.journal.empty()
    _check_headers(file, blocks, report, repair)
    _check_region_tables(file, blocks, report, repair)
    _check_states(blocks, report)
    _check_places(file, blocks, report, repair)
    behind = file.size() - blocks.used_end() if not report.errors else 0
    if behind > 0:
        report.leak(f"{behind} bytes behind the last block are unused", repaired=repair)
    if repair and not report.errors - report.errors_repaired:
        blocks.commit()
        blocks.journal.empty()
        blocks.trim()
    return report


def _check_headers(file: HostFile, blocks: BlockMap, report: CheckReport, repair: bool) -> None:
    for slot, offset in enumerate(HEADER_OFFSETS, 1):
        if Header.parse(file.read(offset, HEADER_SIZE)) is None:
            report.leak(f"header {slot} is damaged; the other one is used", repaired=repair)
            if repair:
                blocks.journal.begin()


def _check_region_tables(file: HostFile, blocks: BlockMap, report: CheckReport, repair: bool) -> None:
    regions = [blocks.bat, blocks.metadata.region]
    for slot, offset in enumerate(REGION_OFFSETS, 1):
        found = parse_regions(file.read(offset, REGION_TABLE_SIZE))
        if found is None or {(r.guid, r.offset, r.length) for r in found} != {
            (r.guid, r.offset, r.length) for r in regions
        }:
            report.leak(f"region table {slot} is damaged or stale", repaired=repair)
            if repair:
                file.write(offset, pack_regions(regions))
                file.flush()


def _check_states(blocks: BlockMap, report: CheckReport) -> None:
    """Reserved states, and partial blocks without a bitmap."""
    block = 0
    while block < blocks.geometry.blocks:
        absent = blocks.absent_run(block, blocks.geometry.blocks - block)
        block += absent
        if not absent:
            try:
                if blocks.lookup(block)[0] is BlockState.PARTIAL:
                    blocks.bitmap(block, 0, 1)
            except ImageError as error:
                report.error(error.message)
            block += 1


def _check_places(file: HostFile, blocks: BlockMap, report: CheckReport, repair: bool) -> None:
    """Storage outside the file or shared."""
    size, ranges = file.size(), [(start, end, "metadata") for start, end in blocks.areas()]
    for index, _, offset in blocks.stored():
        if offset >= size:
            report.error(f"entry {index} of the BAT is at {offset}, outside the file", repaired=repair)
            if repair:
                blocks.forget(index)
        else:
            ranges.append((offset, offset + blocks.storage_size(index), f"entry {index} of the BAT"))
    for (_, end, one), (start, _, other) in itertools.pairwise(sorted(ranges)):
        if start < end:
            report.error(f"{one} and {other} share storage at {start}")
