"""Looking for damage in the blocks of a dynamic or differencing VHD.

Errors: a block outside the file's data area, or two that share storage. Leaks: a footer that only one copy is
left of, and space behind the last block.
"""

from __future__ import annotations

import itertools

from sublet.block.description import CheckReport
from sublet.block.hostfile import HostFile
from sublet.block.vhd.blocks import BlockStore
from sublet.block.vhd.layout import FOOTER_SIZE, HEADER_SIZE, SECTOR, Footer
from sublet.errors import ImageError


def check_blocks(file: HostFile, store: BlockStore, *, tail_is_good: bool, repair: bool) -> CheckReport:
    """Check table, blocks and footers.

    Args:
        tail_is_good: Whether the file's last footer was readable.
        repair: Free blocks that have no storage in the file, restore footers, cut the file behind its data.
    """
    report = CheckReport()
    if repair:
        store.commit()
    _check_footers(file, store, report, tail_is_good, repair)
    regions = _check_entries(file, store, report, repair)
    _check_overlaps(regions, store.total_size, report)
    _check_room(file, store, report, repair)
    return report


def _check_footers(
    file: HostFile, store: BlockStore, report: CheckReport, tail_is_good: bool, repair: bool
) -> None:
    try:
        head: Footer | None = Footer.parse(file.read(0, FOOTER_SIZE))
    except ImageError:
        head = None
    if head != store.footer:
        report.leak("the copy of the footer at the file's start differs from it", repaired=repair)
    if not tail_is_good:
        report.leak("the footer at the file's end is missing or damaged", repaired=repair)
    if repair and not tail_is_good:
        store.restore_footer()
    if repair and head != store.footer:
        store.write_footers(store.footer)


def _check_entries(
    file: HostFile, store: BlockStore, report: CheckReport, repair: bool
) -> list[tuple[int, int]]:
    """Valid blocks as pairs of base and block number, in the order of their bases."""
    regions, lost = [], []
    tables = _fixed_areas(store)
    for block, sector in store.entries():
        base = sector * SECTOR
        outside = base + store.bitmap_size >= file.size()
        if outside or any(base < end and start < base + store.total_size for start, end in tables):
            lost += [block] if outside else []
            what = "outside the file" if outside else "where the disk's tables are"
            report.error(f"block {block} is at {base}, {what}", repaired=repair and outside)
        else:
            regions.append((base, block))
    if repair:
        store.forget(lost)
    return sorted(regions)


def _fixed_areas(store: BlockStore) -> list[tuple[int, int]]:
    """Half-open ranges of bytes that no block may touch."""
    start = store.footer.data_offset
    areas = [(0, FOOTER_SIZE), (start, start + HEADER_SIZE), (store.header.table_offset, store.table_end)]
    areas += [(entry.offset, entry.offset + entry.length) for entry in store.header.locators if entry.length]
    return areas


def _check_overlaps(regions: list[tuple[int, int]], size: int, report: CheckReport) -> None:
    for (base, block), (following, other) in itertools.pairwise(regions):
        if following < base + size:
            report.error(f"blocks {block} and {other} share storage at {following}")


def _check_room(file: HostFile, store: BlockStore, report: CheckReport, repair: bool) -> None:
    """Space behind all data is leaked; holes between blocks are what the next ones are put into."""
    behind = max(0, file.size() - FOOTER_SIZE - store.data_end())
    if behind >= SECTOR:
        report.leak(f"{behind} bytes behind the last block are unused", repaired=repair)
    if repair and not report.errors - report.errors_repaired:
        store.trim()
