"""Where the bytes of a QCOW2 disk are, as its tables say.

Reference: "QCOW2 image format" (QEMU 7.2, docs/interop/qcow2.txt), "Cluster mapping", "Extended L2 Entries".
"""

from __future__ import annotations

import enum
from array import array
from pathlib import Path

from sublet.block.format import Image
from sublet.block.qcow2 import layout as q
from sublet.block.qcow2.tables import L2Table, Tables
from sublet.errors import CorruptImage


class Kind(enum.IntEnum):
    """How a range is stored."""

    NORMAL = 0
    ZERO = 1
    UNALLOCATED = 2
    COMPRESSED = 3


Run = tuple[Kind, int, int]
"""(kind, bytes, host offset; the L2 entry for COMPRESSED)."""


class Mapping:
    """Looks ranges up. The image's lock guards it.

    Args:
        path: For messages.
        tables: Those of the image.
    """

    def __init__(self, path: Path, header: q.Header, tables: Tables) -> None:
        self._path = path
        self._header = header
        self._tables = tables
        self._external = header.has_data_file
        self._extended = header.extended_l2
        self._zero_flag = q.ZERO if header.version >= 3 and not header.extended_l2 else 0
        self._bits = header.cluster_bits
        self._cluster = header.cluster_size
        self._in_cluster = header.cluster_size - 1
        self._l2_entries = header.l2_entries

    def place(self, offset: int) -> tuple[int, int]:
        """Index of the L1 entry, and of the cluster in its L2 table, for a byte of the disk."""
        return divmod(offset >> self._bits, self._l2_entries)

    def run(self, offset: int, limit: int) -> Run:
        """How the bytes from ``offset`` are stored, as far as they are so alike, up to ``limit``."""
        l1_index, index = divmod(offset >> self._bits, self._l2_entries)
        table = self._tables.l2(l1_index)
        inside = offset & self._in_cluster
        if table is None:
            span = ((self._l2_entries - index) << self._bits) - inside
            return Kind.UNALLOCATED, min(limit, span), 0
        if self._extended:
            return self._subcluster_run(table, index, inside, limit)
        kind, host = self.classify(table.entries[index])
        size = self._cluster - inside
        if kind is Kind.COMPRESSED:
            return kind, min(limit, size), host
        if limit > size:
            alike = self._count_alike(table, index, kind, (limit - size >> self._bits) + 1)
            size += alike << self._bits
        return kind, min(limit, size), host + inside

    def _count_alike(self, table: L2Table, index: int, kind: Kind, limit: int) -> int:
        """Clusters after ``index``, up to ``limit``, that go on with the same kind at the next place."""
        entries = table.entries
        end = min(self._l2_entries, index + 1 + limit)
        position, flags = index + 1, entries[index]
        if kind is Kind.NORMAL:
            step = self._cluster
        else:
            # Nowhere, and so often for a whole table: halving finds the most of it.
            step, count = 0, end - index
            while count > 1 and entries[index : index + count] != array("Q", (flags,)) * count:
                count //= 2
            position = index + max(1, count)
        while position < end and entries[position] == flags + step:
            flags += step
            position += 1
        return position - index - 1

    def classify(self, entry: int) -> tuple[Kind, int]:
        """Kind and host offset of a standard L2 entry.

        Raises:
            CorruptImage: The entry names no cluster.
        """
        if entry & q.COMPRESSED:
            return Kind.COMPRESSED, entry & ~q.COPIED
        host = entry & q.OFFSET_MASK
        if host & self._in_cluster:
            raise CorruptImage(f"{self._path}: L2 entry {entry:#x} is not at a cluster")
        if entry & self._zero_flag:
            return Kind.ZERO, host
        if not host and not (self._external and entry & q.COPIED):
            return Kind.UNALLOCATED, 0
        return Kind.NORMAL, host

    def _subcluster_run(self, table: L2Table, index: int, inside: int, limit: int) -> Run:
        """As ``run``, of extended entries: within one cluster, or over whole clusters that are alike."""
        entry, bitmap = table.entries[2 * index], table.entries[2 * index + 1]
        kind, host = self.classify(entry)
        if kind is Kind.COMPRESSED:
            return kind, min(limit, self._cluster - inside), host
        sub_bits = self._bits - 5
        first = inside >> sub_bits
        found = _subcluster_kind(bitmap, first)
        self._refuse_bitmap(entry, bitmap, kind)
        if kind is Kind.NORMAL and bitmap == q.ALL_ALLOCATED:
            clusters = self._count_alike_extended(table, index, entry, limit + inside >> self._bits)
            return found, min(limit, (clusters + 1 << self._bits) - inside), host + inside
        last = first + 1
        while last < q.SUBCLUSTERS and _subcluster_kind(bitmap, last) is found:
            last += 1
        return found, min(limit, (last << sub_bits) - inside), host + inside

    def _count_alike_extended(self, table: L2Table, index: int, entry: int, limit: int) -> int:
        entries, position = table.entries, index + 1
        end = min(self._l2_entries, index + 1 + limit)
        while position < end and entries[2 * position + 1] == q.ALL_ALLOCATED:
            entry += self._cluster
            if entries[2 * position] != entry:
                break
            position += 1
        return position - index - 1

    def _refuse_bitmap(self, entry: int, bitmap: int, kind: Kind) -> None:
        """Raise for a subcluster that is both allocated and zero, or allocated without a cluster."""
        if bitmap & (bitmap >> 32) & q.ALL_ALLOCATED or (
            kind is Kind.UNALLOCATED and bitmap & q.ALL_ALLOCATED
        ):
            raise CorruptImage(f"{self._path}: L2 entry {entry:#x} has the invalid bitmap {bitmap:#x}")

    def in_place(self, offset: int, limit: int) -> tuple[int, int]:
        """(bytes, host offset) that can be overwritten where they are; (0, 0) for none."""
        l1_index, index = self.place(offset)
        table = self._tables.l2(l1_index)
        if table is None or not self._tables.l1[l1_index] & q.COPIED:
            return 0, 0
        if not table.entries[2 * index if self._extended else index] & q.COPIED:
            return 0, 0
        kind, size, host = self.run(offset, limit)
        return (size, host) if kind is Kind.NORMAL else (0, 0)

    def count_new(self, table: L2Table, index: int, limit: int) -> int:
        """Clusters from ``index``, up to ``limit``, that cannot be overwritten where they are; at least 1."""
        end = min(self._l2_entries, index + limit)
        position = index + 1
        while position < end:
            entry = table.entries[position]
            if entry & q.COPIED and not entry & q.COMPRESSED and self.classify(entry)[0] is Kind.NORMAL:
                break
            position += 1
        return position - index

    def reads_zero(self, offset: int, size: int, backing: Image | None) -> bool:
        """Whether the tables alone say that the range is zero."""
        while size:
            kind, count, _ = self.run(offset, size)
            below = kind is Kind.UNALLOCATED and (backing is None or offset >= backing.size)
            if kind is not Kind.ZERO and not below:
                return False
            offset += count
            size -= count
        return True


def _subcluster_kind(bitmap: int, number: int) -> Kind:
    if bitmap >> number & 1:
        return Kind.NORMAL
    return Kind.ZERO if bitmap >> (32 + number) & 1 else Kind.UNALLOCATED
