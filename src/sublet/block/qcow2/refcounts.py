"""QCOW2 reference counts: which clusters of the file are in use, and finding free ones.

Counts change in memory. The image writes them with ``write_blocks`` before anything that refers to a new
cluster, and applies ``release`` only once nothing on disk refers to the old one (``apply_releases``); so a
crash leaves a count too high at worst, which is a leak.

A free block of counts is placed in the first cluster that it counts, so it needs no other block.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from sublet.block.hostfile import HostFile, read_structure
from sublet.block.qcow2.layout import (
    OFFSET_MASK,
    REFTABLE_BYTES_MAXIMUM,
    Header,
    table_from_bytes,
    table_to_bytes,
)
from sublet.errors import CorruptImage, HostRefused

CACHE_BLOCKS_BYTES = 4 << 20
"""Blocks kept in memory beyond those that are to be written."""


class RefcountBlock:
    """Counts of ``entries`` clusters, ``bits`` wide each, as they are on disk."""

    def __init__(self, data: bytearray, order: int) -> None:
        self.data = data
        self.bits = 1 << order
        self.entries = len(data) * 8 // self.bits
        self.dirty = False

    def get(self, index: int) -> int:
        """Count of a cluster."""
        if self.bits >= 8:
            width = self.bits >> 3
            return int.from_bytes(self.data[index * width : (index + 1) * width], "big")
        bit = index * self.bits
        return (self.data[bit >> 3] >> (bit & 7)) & ((1 << self.bits) - 1)

    def set(self, index: int, value: int) -> None:
        """Set the count of a cluster."""
        self.dirty = True
        if self.bits >= 8:
            width = self.bits >> 3
            self.data[index * width : (index + 1) * width] = value.to_bytes(width, "big")
            return
        shift = index * self.bits & 7
        mask = ((1 << self.bits) - 1) << shift
        place = index * self.bits >> 3
        self.data[place] = self.data[place] & ~mask | value << shift

    def fill(self, index: int, count: int) -> None:
        """Set ``count`` counts to 1."""
        if self.bits < 8:
            for position in range(index, index + count):
                self.set(position, 1)
            return
        self.dirty = True
        width = self.bits >> 3
        self.data[index * width : (index + count) * width] = (1).to_bytes(width, "big") * count

    def next_free(self, index: int) -> int:
        """First cluster from ``index`` with count 0, or ``entries``."""
        if self.bits < 8:
            return next((i for i in range(index, self.entries) if not self.get(i)), self.entries)
        width = self.bits >> 3
        place = self.data.find(bytes(width), index * width)
        while place >= 0 and place % width:
            place = self.data.find(bytes(width), place + 1)
        return place // width if place >= 0 else self.entries

    def free_run(self, index: int, limit: int) -> int:
        """How many clusters from ``index`` are free, up to ``limit``."""
        limit = min(limit, self.entries - index)
        if self.bits >= 8:
            width = self.bits >> 3
            if not any(memoryview(self.data)[index * width : (index + limit) * width]):
                return limit
        return next((n for n in range(limit) if self.get(index + n)), limit)


class Refcounts:
    """Counts of the clusters of one file. The image's lock guards it.

    Args:
        switch_table: Writes the header with a new table's offset and clusters, between two barriers.
    """

    def __init__(self, file: HostFile, header: Header, switch_table: Callable[[int, int], None]) -> None:
        self._file = file
        self._order = header.refcount_order
        self._cluster_bits = header.cluster_bits
        self._cluster_size = header.cluster_size
        self.per_block = header.cluster_size * 8 >> header.refcount_order
        self.maximum = (1 << (1 << header.refcount_order)) - 1
        self._switch_table = switch_table
        self._reserved: list[range] = []
        self.releases: list[tuple[int, int]] = []
        """(first cluster, count) to decrement once nothing on disk refers to them."""
        self._blocks: dict[int, RefcountBlock] = {}
        self._table_dirty: set[int] = set()
        self._hint = 0
        self.load(header)

    def load(self, header: Header) -> None:
        """Read the table that the header names; forget all else."""
        size = header.reftable_clusters * self._cluster_size
        self._table_offset = header.reftable_offset
        self.table = table_from_bytes(
            read_structure(self._file, header.reftable_offset, size, "refcount table")
        )
        self._blocks.clear()
        self._table_dirty.clear()
        self.releases.clear()
        self._hint = 0

    def reserve(self, ranges: list[range]) -> None:
        """Clusters of the header and top tables: a free one among them is damage, never to be handed out."""
        self._reserved = ranges

    @property
    def dirty(self) -> bool:
        """Whether anything waits to be written."""
        return bool(self._table_dirty or self.releases or any(b.dirty for b in self._blocks.values()))

    def get(self, cluster: int) -> int:
        """Count of a cluster of the file."""
        block = self._block(cluster // self.per_block)
        return block.get(cluster % self.per_block) if block else 0

    def _block(self, index: int) -> RefcountBlock | None:
        block = self._blocks.get(index)
        if block is not None:
            return block
        offset = self.table[index] & OFFSET_MASK if index < len(self.table) else 0
        if not offset:
            return None
        if offset % self._cluster_size:
            raise CorruptImage(f"{self._file.path}: refcount table entry {index} is {offset:#x}, no cluster")
        data = read_structure(self._file, offset, self._cluster_size, f"refcount block {index}")
        self._trim()
        block = self._blocks[index] = RefcountBlock(bytearray(data), self._order)
        return block

    def _trim(self) -> None:
        """Forget clean blocks when many are in memory."""
        if len(self._blocks) * self._cluster_size >= CACHE_BLOCKS_BYTES:
            self._blocks = {index: block for index, block in self._blocks.items() if block.dirty}

    def increment(self, first: int, count: int = 1) -> None:
        """Add 1 to each; the clusters are in use already, or were just found free.

        Raises:
            CorruptImage: A count is at its maximum.
        """
        for cluster in range(first, first + count):
            block = self._ensure_block(cluster // self.per_block)
            value = block.get(cluster % self.per_block)
            if value >= self.maximum:
                raise CorruptImage(f"{self._file.path}: the refcount of cluster {cluster} is at its maximum")
            block.set(cluster % self.per_block, value + 1)

    def allocate(self, limit: int) -> tuple[int, int]:
        """Take up to ``limit`` consecutive free clusters; at least one. Returns (first, count)."""
        cluster = self._hint
        while True:
            index, position = divmod(cluster, self.per_block)
            block = self._ensure_block(index)
            position = block.next_free(position)
            if position < block.entries:
                break
            cluster = (index + 1) * self.per_block
        count = block.free_run(position, limit)
        first = index * self.per_block + position
        self._refuse_reserved(first, count)
        block.fill(position, count)
        self._hint = first + count
        return first, count

    def allocate_exact(self, count: int) -> int:
        """Take ``count`` consecutive free clusters."""
        hint = self._hint
        while True:
            first, found = self.allocate(count)
            while found < count:
                following, more = self.allocate(count - found)
                if following != first + found:
                    self._unallocate(first, found)
                    first, found = following, more
                else:
                    found += more
            self._hint = min(hint, first) if count > 1 else self._hint
            return first

    def _unallocate(self, first: int, count: int) -> None:
        """Give back clusters that nothing ever referred to."""
        for cluster in range(first, first + count):
            self._ensure_block(cluster // self.per_block).set(cluster % self.per_block, 0)

    def _refuse_reserved(self, first: int, count: int) -> None:
        for used in self._reserved:
            if first < used.stop and first + count > used.start:
                raise CorruptImage(
                    f"{self._file.path}: the refcount of cluster {max(first, used.start)} is 0, "
                    "but the image's own tables are in it",
                    remedy="Repair it with 'sublet disk check --repair'.",
                )

    def _ensure_block(self, index: int) -> RefcountBlock:
        """The block of that index, made if it is not there."""
        block = self._block(index)
        if block is not None:
            return block
        if index >= len(self.table):
            self._grow_table(index)
            return self._ensure_block(index)
        first = index * self.per_block
        self._refuse_reserved(first, 1)
        block = RefcountBlock(bytearray(self._cluster_size), self._order)
        block.fill(0, 1)
        self._trim()
        self._blocks[index] = block
        self.table[index] = first << self._cluster_bits
        self._table_dirty.add(index)
        return block

    def _grow_table(self, index: int) -> None:
        """Move the table to the start of the region that block ``index`` counts, with room for more."""
        wanted = max(index + 1 + index // 2, len(self.table) * 2) * 8
        clusters = max(1, -(-wanted // self._cluster_size))
        clusters = min(clusters, REFTABLE_BYTES_MAXIMUM // self._cluster_size)
        entries = clusters * self._cluster_size // 8
        if entries <= index:
            raise HostRefused(f"{self._file.path}: the image is as large as its refcount table can describe")
        blocks = 1
        while blocks + clusters > blocks * self.per_block:
            blocks += 1
        if index + blocks > entries:
            raise HostRefused(f"{self._file.path}: the image is as large as its refcount table can describe")
        self.write_blocks()
        old_offset, old_clusters = self._table_offset, len(self.table) * 8 // self._cluster_size
        table = array("Q", self.table)
        table.extend([0] * (entries - len(table)))
        first = index * self.per_block
        self._fill_region(table, first, blocks, clusters)
        self._file.write((first + blocks) << self._cluster_bits, table_to_bytes(table))
        self._table_offset = (first + blocks) << self._cluster_bits
        self.table = table
        self._switch_table(self._table_offset, clusters)
        self._table_dirty.clear()
        self.releases.append((old_offset >> self._cluster_bits, old_clusters))

    def _fill_region(self, table: array[int], first: int, blocks: int, clusters: int) -> None:
        """Make and write ``blocks`` blocks from cluster ``first`` that count themselves and the table."""
        used = blocks + clusters
        for number in range(blocks):
            block = RefcountBlock(bytearray(self._cluster_size), self._order)
            block.fill(0, max(0, min(self.per_block, used - number * self.per_block)))
            index = first // self.per_block + number
            self._blocks[index] = block
            table[index] = (first + number) << self._cluster_bits
            self._file.write(table[index], block.data)
            block.dirty = False

    def release(self, first: int, count: int = 1) -> None:
        """Decrement later, when nothing on disk refers to the clusters any more."""
        if self.releases and sum(self.releases[-1]) == first:
            before, size = self.releases[-1]
            self.releases[-1] = (before, size + count)
        else:
            self.releases.append((first, count))

    def apply_releases(self) -> list[tuple[int, int]]:
        """Decrement what was released. Precondition: nothing on disk refers to it. Returns freed runs."""
        freed: list[tuple[int, int]] = []
        for first, count in self.releases:
            for cluster in range(first, first + count):
                if self._decrement(cluster):
                    self._hint = min(self._hint, cluster)
                    if freed and sum(freed[-1]) == cluster:
                        freed[-1] = (freed[-1][0], freed[-1][1] + 1)
                    else:
                        freed.append((cluster, 1))
        self.releases.clear()
        return freed

    def _decrement(self, cluster: int) -> bool:
        """Whether the cluster is free now; a count that is 0 already is damage that check reports."""
        block = self._block(cluster // self.per_block)
        value = block.get(cluster % self.per_block) if block else 0
        if not block or not value:
            return False
        block.set(cluster % self.per_block, value - 1)
        return value == 1

    def write_blocks(self) -> None:
        """Write changed counts."""
        for index, block in self._blocks.items():
            if block.dirty:
                self._file.write(self.table[index] & OFFSET_MASK, block.data)
                block.dirty = False

    def write_table(self) -> bool:
        """Write changed sectors of the table; whether there were any. Precondition: blocks are stable."""
        if not self._table_dirty:
            return False
        for sector in sorted({index // 64 for index in self._table_dirty}):
            piece = self.table[sector * 64 : sector * 64 + 64]
            self._file.write(self._table_offset + sector * 512, table_to_bytes(piece))
        self._table_dirty.clear()
        return True
