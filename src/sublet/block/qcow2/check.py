"""Checking a QCOW2 image: the counts on disk against what its tables refer to, and the COPIED flags."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from sublet.block.description import CheckReport
from sublet.block.qcow2 import layout as q
from sublet.block.qcow2.refcounts import RefcountBlock
from sublet.block.qcow2.references import References, count_all, expected_entry

if TYPE_CHECKING:
    from sublet.block.qcow2.image import Qcow2Image


def check(image: Qcow2Image, *, repair: bool) -> CheckReport:
    """Compare, and with ``repair`` write new counts and flags. The image's lock is held."""
    if not image.readonly:
        image.write_metadata()
    report = CheckReport()
    _inspect(image, report)
    flagged = image.header.incompatible & (q.INCOMPATIBLE_DIRTY | q.INCOMPATIBLE_CORRUPT)
    if repair and (report.errors or report.leaks or flagged):
        _repair(image, report)
    return report


def _repair(image: Qcow2Image, report: CheckReport) -> None:
    from sublet.block.qcow2.rewrite import rewrite

    features = q.INCOMPATIBLE_DIRTY | q.INCOMPATIBLE_CORRUPT
    rewrite(image, image.tables.l1, image.snapshot_records, image.header.size, clear_features=features)
    after = CheckReport()
    _inspect(image, after)
    report.errors_repaired = max(0, report.errors - after.errors)
    report.leaks_repaired = max(0, report.leaks - after.leaks)


def _inspect(image: Qcow2Image, report: CheckReport) -> None:
    header, file = image.header, image.file
    references = count_all(file, header, image.tables.l1, image.snapshot_records, report)
    if header.l1_entries:
        references.add(header.l1_offset, header.l1_entries * 8, "L1 table")
    if header.snapshot_count:
        size = sum(len(record.pack()) for record in image.snapshot_records)
        references.add(header.snapshots_offset, size, "snapshot table")
    references.add(header.reftable_offset, header.reftable_clusters * header.cluster_size, "refcount table")
    table = image.refcounts.table
    for index, entry in enumerate(table):
        if entry & q.OFFSET_MASK:
            references.add(entry & q.OFFSET_MASK, header.cluster_size, f"refcount block {index}")
    if header.incompatible & q.INCOMPATIBLE_CORRUPT:
        report.error("the image is marked as corrupt")
    _compare_counts(image, references, report)
    _check_flags(image, references, report)


def _compare_counts(image: Qcow2Image, references: References, report: CheckReport) -> None:
    header = image.header
    per_block = image.refcounts.per_block
    chunk = references.chunk_size
    table = image.refcounts.table
    indices = {number * chunk // per_block for number in references.used()}
    for number in references.used():
        indices.update(range(number * chunk // per_block, (number * chunk + chunk - 1) // per_block + 1))
    indices.update(index for index, entry in enumerate(table) if entry & q.OFFSET_MASK)
    for index in sorted(indices):
        stored = _stored_counts(image, index, per_block)
        true = references.counts(index * per_block, per_block)
        if stored != true:
            _report_counts(index * per_block, stored, true, header.cluster_size, report)


def _stored_counts(image: Qcow2Image, index: int, per_block: int) -> array[int]:
    """Counts in a refcount block; none where it is missing or lies nowhere."""
    table = image.refcounts.table
    offset = table[index] & q.OFFSET_MASK if index < len(table) else 0
    size = image.header.cluster_size
    if not offset or offset % size or offset + size > -(-image.file.size() // size) * size:
        return array("H", bytes(2 * per_block))
    block = RefcountBlock(bytearray(image.file.read(offset, size)), image.header.refcount_order)
    if block.bits == 16:
        counts = array("H", bytes(block.data))
        counts.byteswap()
        return counts
    return array("H", (min(block.get(position), 0xFFFF) for position in range(block.entries)))


def _report_counts(start: int, stored: array[int], true: array[int], size: int, report: CheckReport) -> None:
    for position, (have, need) in enumerate(zip(stored, true, strict=True)):
        if have == need:
            continue
        text = f"cluster {start + position} has the refcount {have}, and {need} references"
        if have < need:
            report.error(text)
        else:
            report.leak(f"{text} ({size} bytes leaked)" if not need else text)


def _check_flags(image: Qcow2Image, references: References, report: CheckReport) -> None:
    header = image.header
    end = -(-image.file.size() // header.cluster_size)
    for index, entry in enumerate(image.tables.l1):
        offset = entry & q.OFFSET_MASK
        if not offset or offset % header.cluster_size or offset >> header.cluster_bits >= end:
            continue
        single = references.get(offset >> header.cluster_bits) == 1
        if single != bool(entry & q.COPIED):
            report.error(f"L1 entry {index} has the wrong COPIED flag")
        entries = references.read_l2(offset, f"L2 table {index}")
        for number, found in enumerate(entries[:: 2 if header.extended_l2 else 1]):
            if found and found != expected_entry(found, references, header, end):
                report.error(
                    f"entry {number} of L2 table {index} is {found:#x}, which does not fit its count"
                )
