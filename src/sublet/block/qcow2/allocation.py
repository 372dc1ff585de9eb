"""Giving the clusters of a QCOW2 disk a place, and taking it from them.

New data is in its place before an entry names it. What an entry named before is released, which counts only
once nothing on disk names it (``refcounts``).
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from sublet.block.qcow2 import layout as q
from sublet.block.qcow2.mapping import Kind
from sublet.block.qcow2.tables import L2Table

if TYPE_CHECKING:
    from sublet.block.qcow2.image import Qcow2Image


class Allocation:
    """Changes the tables of one image. The image's lock guards it."""

    def __init__(self, image: Qcow2Image) -> None:
        self._image = image
        self._tables = image.tables
        self._mapping = image.mapping
        self._refcounts = image.refcounts
        self._data = image.data
        self._extended = image.header.extended_l2
        self._bits = image.header.cluster_bits
        self._cluster = image.header.cluster_size
        self._in_cluster = image.header.cluster_size - 1
        self.data_end = 0
        """First byte of the data file, at a cluster, that nothing was ever stored at: it reads as zero."""
        self.measure()

    def measure(self) -> None:
        """Take the data file as it is."""
        self.data_end = -(-self._data.size() // self._cluster) * self._cluster

    def write(self, offset: int, view: memoryview) -> int:
        """Write the first bytes of ``view`` to where nothing can be overwritten; returns how many."""
        l1_index, index = self._mapping.place(offset)
        table = self.own_l2(l1_index)
        inside = offset & self._in_cluster
        if self._extended:
            size = min(len(view), self._cluster - inside)
            self._write_subclusters(table, index, offset, view[:size])
            return size
        wanted = (inside + len(view) + self._in_cluster) >> self._bits
        wanted = self._mapping.count_new(table, index, wanted)
        host, count = self._allocate(offset & ~self._in_cluster, wanted)
        size = min(len(view), (count << self._bits) - inside)
        self._fill(offset, view[:size], host, count)
        self._point_to(table, index, host, count)
        return size

    def place(self, offset: int, size: int) -> tuple[int, int]:
        """New clusters for the first bytes of a range: their number, and where they are. They are zero.

        Precondition: no parent, no subclusters, no encryption.
        """
        l1_index, index = self._mapping.place(offset)
        table = self.own_l2(l1_index)
        inside = offset & self._in_cluster
        wanted = self._mapping.count_new(table, index, (inside + size + self._in_cluster) >> self._bits)
        host, count = self._allocate(offset & ~self._in_cluster, wanted)
        if host < self.data_end and not self._image.external_data:
            self._data.write_zeroes(host, min(count << self._bits, self.data_end - host))
        self.grow(host + (count << self._bits))
        self._point_to(table, index, host, count)
        return min(size, (count << self._bits) - inside), host + inside

    def grow(self, end: int) -> None:
        """Something was stored below ``end``."""
        self.data_end = max(self.data_end, end + self._in_cluster & ~self._in_cluster)

    def _point_to(self, table: L2Table, index: int, host: int, count: int) -> None:
        """Point L2 entries to ``count`` clusters of this image alone, side by side from ``host`` on."""
        start = host | q.COPIED
        self.set_entries(table, index, array("Q", range(start, start + (count << self._bits), self._cluster)))

    def _allocate(self, guest: int, count: int) -> tuple[int, int]:
        """(host offset, clusters) for the clusters from guest offset ``guest``."""
        if self._image.external_data:
            return guest, count
        first, count = self._refcounts.allocate(count)
        return first << self._bits, count

    def _fill(self, offset: int, view: memoryview, host: int, count: int) -> None:
        """Write new clusters: ``view`` at ``offset``, and around it what the disk has held there."""
        inside = offset & self._in_cluster
        total = count << self._bits
        # Clusters behind the file's end read as zeroes already.
        fresh = host >= self.data_end and not self._image.encrypted
        head = tail = b""
        if not (fresh and self._is_blank(offset - inside, total)):
            head = self._old_content(offset - inside, inside, skip_zeroes=fresh)
            tail = self._old_content(offset + len(view), total - inside - len(view), skip_zeroes=fresh)
        data = b"".join((head, view, tail)) if head or tail else view
        self._data.write(host + inside - len(head), data)
        self.data_end = max(self.data_end, host + total)

    def _is_blank(self, offset: int, size: int) -> bool:
        """Whether the tables alone say that the disk holds zeroes there."""
        inside = max(0, min(size, self._image.size - offset))
        return self._mapping.reads_zero(offset, inside, self._image.backing)

    def _old_content(self, offset: int, size: int, *, skip_zeroes: bool) -> bytes:
        """What the disk holds, zeroes past its end; nothing for zeroes alone if they can be skipped."""
        inside = max(0, min(size, self._image.size - offset))
        if self._is_blank(offset, size):
            return b"" if skip_zeroes else bytes(size)
        buffer = bytearray(size)
        self._image.readinto(offset, memoryview(buffer)[:inside])
        return bytes(buffer)

    def _write_subclusters(self, table: L2Table, index: int, offset: int, view: memoryview) -> None:
        """``write`` with extended L2 entries, within one cluster."""
        entry, bitmap = table.entries[2 * index], table.entries[2 * index + 1]
        kind, host = self._mapping.classify(entry)
        start = offset & ~self._in_cluster
        if kind is Kind.COMPRESSED or (kind is Kind.NORMAL and not entry & q.COPIED):
            place, _ = self._allocate(start, 1)
            self._fill(offset, view, place, 1)
            self.set_extended(table, index, place | q.COPIED, q.ALL_ALLOCATED)
            return
        fresh = kind is Kind.UNALLOCATED
        if fresh:
            host, _ = self._allocate(start, 1)
        fresh = fresh and host >= self.data_end and not self._image.encrypted
        inside = offset & self._in_cluster
        sub_size = self._cluster // q.SUBCLUSTERS
        first, last = inside // sub_size, (inside + len(view) - 1) // sub_size
        head_size = 0 if bitmap >> first & 1 else inside - first * sub_size
        tail_size = 0 if bitmap >> last & 1 else (last + 1) * sub_size - inside - len(view)
        head = self._old_content(offset - head_size, head_size, skip_zeroes=fresh)
        tail = self._old_content(offset + len(view), tail_size, skip_zeroes=fresh)
        self._data.write(host + inside - len(head), b"".join((head, view, tail)))
        self.data_end = max(self.data_end, host + self._cluster)
        touched = (1 << last + 1) - (1 << first)
        self.set_extended(table, index, host | q.COPIED, (bitmap | touched) & ~(touched << 32))

    def set_extended(self, table: L2Table, index: int, entry: int, bitmap: int) -> None:
        """Change an extended L2 entry and release what the old one held alone."""
        old = table.entries[2 * index]
        self._tables.change(table, 2 * index, array("Q", (entry, bitmap)))
        if old & q.OFFSET_MASK != entry & q.OFFSET_MASK or old & q.COMPRESSED:
            self._release(old)

    def set_entries(self, table: L2Table, index: int, new: array[int]) -> None:
        """Change standard L2 entries and release what the old ones held alone."""
        old = table.entries[index : index + len(new)]
        self._tables.change(table, index, new)
        for before, after in zip(old, new, strict=True):
            if before and (before & q.COMPRESSED or before & q.OFFSET_MASK != after & q.OFFSET_MASK):
                self._release(before)

    def _release(self, entry: int) -> None:
        """Give up the clusters of an old L2 entry."""
        if entry & q.COMPRESSED:
            offset, size = q.compressed_range(entry, self._bits)
            first = offset >> self._bits
            self._refcounts.release(first, (offset + size - 1 >> self._bits) - first + 1)
        elif entry & q.OFFSET_MASK and not self._image.external_data:
            self._refcounts.release((entry & q.OFFSET_MASK) >> self._bits)

    def own_l2(self, l1_index: int) -> L2Table:
        """The L2 table of that L1 entry, for writing: new where there is none or it is shared."""
        entry = self._tables.l1[l1_index]
        table = self._tables.l2(l1_index)
        if table is not None and entry & q.COPIED:
            return table
        first, _ = self._refcounts.allocate(1)
        if table is not None:
            self._refcounts.release(table.offset >> self._bits)
        return self._tables.replace_l2(l1_index, first << self._bits, table.entries if table else None)
