"""New metadata beside the old, brought in with one write of the header.

Snapshots and repair change counts, flags and tables all over the file at once. They plan the L1 table and
the snapshots as they shall be; here the counts that follow are found by walking them, changed tables are
written behind the file's end, and then one sector, the header's, makes them the image. A crash before leaves
the old image, a crash after it the new one, and neither has leaks from it.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from sublet.block.description import SECTOR, CheckReport
from sublet.block.qcow2 import layout as q
from sublet.block.qcow2.refcounts import RefcountBlock
from sublet.block.qcow2.references import References, count_all, expected_bitmap, expected_entry
from sublet.block.qcow2.snapshots import SnapshotRecord
from sublet.errors import UsageError

if TYPE_CHECKING:
    from sublet.block.qcow2.image import Qcow2Image


def write_whole_header(image: Qcow2Image) -> None:
    """Write the header with extensions and the parent's name. The lock is held.

    The name may lie in a later sector, so it goes first, to where the old one is not.
    """
    packed = image.header.pack()
    image.barrier()
    if len(packed) > SECTOR:
        image.file.write(SECTOR, packed[SECTOR:])
        image.barrier()
    image.file.write(0, packed[:SECTOR])
    image.barrier()


def rewrite(
    image: Qcow2Image,
    l1: array[int],
    records: list[SnapshotRecord],
    size: int,
    *,
    clear_features: int = 0,
) -> None:
    """Make ``l1`` and ``records`` the image's, with counts and flags that fit. The lock is held.

    Precondition: nothing waits to be written. Entries that lead nowhere become unallocated.

    Args:
        size: Bytes of the disk.
        clear_features: Incompatible features to take away.
    """
    header = image.header
    writer = _Writer(image, count_all(image.file, header, l1, records, CheckReport()))
    needed = q.l1_entries_for(size, header.cluster_size, header.l2_entries)
    l1 = array("Q", l1)
    l1.extend([0] * max(0, needed - len(l1), 1 - len(l1)))
    for index, entry in enumerate(l1):
        if entry & q.OFFSET_MASK:
            l1[index] = writer.renew_l2(entry)
    l1_offset = writer.append(q.table_to_bytes(l1))
    table = b"".join(record.pack() for record in records)
    snapshots_offset = writer.append(table) if table else 0
    reftable_offset, reftable_clusters = writer.append_refcounts()
    image.header.l1_offset, image.header.l1_entries = l1_offset, len(l1)
    header.snapshots_offset, header.snapshot_count = snapshots_offset, len(records)
    header.reftable_offset, header.reftable_clusters = reftable_offset, reftable_clusters
    header.size = size
    header.incompatible &= ~clear_features
    image.write_header()
    image.reload()


class _Writer:
    """Appends tables behind the file's end and counts them."""

    def __init__(self, image: Qcow2Image, references: References) -> None:
        self._file = image.file
        self._header = image.header
        self._references = references
        self._next = -(-image.file.size() // image.header.cluster_size)
        self._file_end = self._next

    def append(self, data: bytes) -> int:
        """Write ``data``, filled up to whole clusters; returns its offset."""
        size = self._header.cluster_size
        clusters = max(1, -(-len(data) // size))
        offset = self._next * size
        self._next += clusters
        self._references.extend(self._next)
        self._references.add_clusters(offset // size, clusters, "new table")
        self._file.write(offset, data + bytes(clusters * size - len(data)))
        return offset

    def renew_l2(self, l1_entry: int) -> int:
        """The L1 entry for an L2 table: the same, or of a copy with flags and entries that fit."""
        header, references = self._header, self._references
        offset = l1_entry & q.OFFSET_MASK
        if offset % header.cluster_size or offset // header.cluster_size >= self._file_end:
            return 0
        entries = references.read_l2(offset, "L2 table")
        renewed = array("Q", entries)
        step = 2 if header.extended_l2 else 1
        for index in range(0, len(entries), step):
            if entries[index]:
                renewed[index] = expected_entry(entries[index], references, header, self._file_end)
            if step == 2:
                renewed[index + 1] = expected_bitmap(renewed[index], entries[index + 1], header)
        if renewed != entries:
            references.drop(offset >> header.cluster_bits)
            return self.append(q.table_to_bytes(renewed)) | q.COPIED
        return offset | (q.COPIED if references.get(offset >> header.cluster_bits) == 1 else 0)

    def append_refcounts(self) -> tuple[int, int]:
        """Write counts of everything, themselves included; returns (offset, clusters) of their table."""
        header = self._header
        per_block = header.cluster_size * 8 >> header.refcount_order
        indices, clusters = self._plan_refcounts(per_block)
        first = self._next
        self._next += len(indices) + clusters
        self._references.extend(self._next)
        self._references.add_clusters(first, len(indices) + clusters, "refcounts")
        table = array("Q", bytes(clusters * header.cluster_size))
        for number, index in enumerate(indices):
            table[index] = (first + number) << header.cluster_bits
            block = self._block(index * per_block, per_block)
            self._file.write(table[index], block)
        offset = (first + len(indices)) << header.cluster_bits
        self._file.write(offset, q.table_to_bytes(table))
        return offset, clusters

    def _plan_refcounts(self, per_block: int) -> tuple[list[int], int]:
        """Which blocks are needed, counting those for themselves and their table; clusters of the table."""
        chunk = self._references.chunk_size
        used: set[int] = set()
        for number in self._references.used():
            used.update(range(number * chunk // per_block, (number * chunk + chunk - 1) // per_block + 1))
        while True:
            clusters = max(1, -(-(max(used) + 1) * 8 // self._header.cluster_size))
            last = self._next + len(used) + clusters - 1
            wanted = used | set(range(self._next // per_block, last // per_block + 1))
            if wanted == used:
                return sorted(used), clusters
            used = wanted

    def _block(self, start: int, count: int) -> bytes:
        counts = self._references.counts(start, count)
        order = self._header.refcount_order
        if max(counts) > (1 << (1 << order)) - 1:
            raise UsageError(
                f"{self._file.path}: its refcounts of {1 << order} bits are too narrow for that",
                remedy="Convert it into an image with refcount_bits=16.",
            )
        if order == 4:
            counts.byteswap()
            return counts.tobytes()
        block = RefcountBlock(bytearray(self._header.cluster_size), order)
        for index, value in enumerate(counts):
            if value:
                block.set(index, value)
        return bytes(block.data)
