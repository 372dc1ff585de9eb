"""QCOW2 L1 and L2 tables in memory: read when needed, changed there, written in the image's order.

The core looks at the same L2 tables without a lock (``core.InPlace``): only ``Tables.change`` changes them.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import Final

from sublet.block.hostfile import HostFile, read_structure
from sublet.block.qcow2.layout import COPIED, OFFSET_MASK, Header, table_from_bytes, table_to_bytes
from sublet.core import InPlace, store_entries
from sublet.errors import CorruptImage

CACHE_BYTES: Final = 16 << 20
"""L2 tables kept in memory."""
_SECTOR_ENTRIES: Final = 64


class L2Table:
    """An L2 table: ``entries[i]``, or extended ``entries[2i]`` and its bitmap ``entries[2i + 1]``.

    Args:
        index: Of the L1 entry that names it.
        offset: In the file.
        entries: Not to be changed by the caller.
    """

    def __init__(self, index: int, offset: int, entries: array[int]) -> None:
        self.index = index
        self.offset = offset
        self.entries = entries
        self.dirty_sectors: set[int] = set()

    def mark(self, index: int) -> None:
        """Remember that the number at ``index`` of ``entries`` changed."""
        self.dirty_sectors.add(index // _SECTOR_ENTRIES)

    def mark_range(self, start: int, end: int) -> None:
        """As ``mark``, for a half-open range."""
        self.dirty_sectors.update(range(start // _SECTOR_ENTRIES, (end - 1) // _SECTOR_ENTRIES + 1))


class Tables:
    """The active L1 table and the L2 tables that it names. The image's lock guards it.

    Args:
        in_place: Looks up in the tables that are kept here.
    """

    def __init__(self, file: HostFile, header: Header, in_place: InPlace) -> None:
        self._file = file
        self._in_place = in_place
        self.l1: array[int] = array("Q")
        self.l1_dirty: set[int] = set()
        self._cache: OrderedDict[int, L2Table] = OrderedDict()
        self._changed: dict[int, L2Table] = {}
        self.load(header)

    def load(self, header: Header) -> None:
        """Read the L1 table that the header names; forget all else."""
        self._header = header
        data = read_structure(self._file, header.l1_offset, header.l1_entries * 8, "L1 table")
        self.l1 = table_from_bytes(data)
        self.l1_dirty.clear()
        self._in_place.clear()
        self._cache.clear()
        self._changed.clear()
        self._limit = max(2, CACHE_BYTES // header.cluster_size)

    @property
    def dirty(self) -> bool:
        """Whether anything waits to be written."""
        return bool(self._changed or self.l1_dirty)

    @property
    def full(self) -> bool:
        """Whether so much waits to be written that it should be now."""
        return len(self._changed) >= self._limit // 2

    def l2(self, index: int) -> L2Table | None:
        """The L2 table of that L1 entry; None where it has none.

        Raises:
            CorruptImage: The entry names no cluster of the file.
        """
        entry = self.l1[index]
        offset = entry & OFFSET_MASK
        if not offset:
            return None
        table = self._cache.get(offset)
        if table is not None:
            self._cache.move_to_end(offset)
            return table
        if offset % self._header.cluster_size:
            raise CorruptImage(f"{self._file.path}: L1 entry {index} is {entry:#x}, not at a cluster")
        data = read_structure(self._file, offset, self._header.cluster_size, f"L2 table {index}")
        table = L2Table(index, offset, table_from_bytes(data))
        self._insert(table)
        return table

    def _insert(self, table: L2Table) -> None:
        while len(self._cache) >= self._limit:
            victim = self._victim()
            if victim is None:
                break
            del self._cache[victim.offset]
            self._in_place.detach(victim.index)
        self._cache[table.offset] = table
        own = bool(self.l1[table.index] & COPIED)
        self._in_place.attach(table.index, table.entries, own)

    def _victim(self) -> L2Table | None:
        """The table that was not used for longest, as far as is known, and has nothing to be written."""
        clean = [table for table in self._cache.values() if not table.dirty_sectors]
        for table in clean:
            if not self._in_place.take_used(table.index):
                return table
            self._cache.move_to_end(table.offset)
        return clean[0] if clean else None

    def replace_l2(self, index: int, offset: int, entries: array[int] | None) -> L2Table:
        """Give an L1 entry a new table at ``offset``: a copy of ``entries``, or empty."""
        blank = array("Q", bytes(self._header.cluster_size))
        table = L2Table(index, offset, blank if entries is None else array("Q", entries))
        self._cache.pop(self.l1[index] & OFFSET_MASK, None)
        self.l1[index] = offset | COPIED
        self.l1_dirty.add(index)
        self._insert(table)
        table.mark_range(0, len(table.entries))
        self._changed[offset] = table
        return table

    def change(self, table: L2Table, start: int, values: array[int]) -> None:
        """Set the table's ``entries`` from ``start`` on."""
        store_entries(table.entries, start, values)
        table.mark_range(start, start + len(values))
        self._changed[table.offset] = table

    def write_l2(self) -> None:
        """Write changed sectors of L2 tables. Precondition: what they refer to is stable."""
        for table in self._changed.values():
            for start, end in _runs(table.dirty_sectors):
                piece = table.entries[start * _SECTOR_ENTRIES : end * _SECTOR_ENTRIES]
                self._file.write(table.offset + start * 512, table_to_bytes(piece))

    def l2_written(self) -> None:
        """The changed tables are stable."""
        for table in self._changed.values():
            table.dirty_sectors.clear()
        self._changed.clear()

    def write_l1(self) -> bool:
        """Write changed sectors of the L1 table; whether any. Precondition: the L2 tables are stable."""
        if not self.l1_dirty:
            return False
        for start, end in _runs({index // _SECTOR_ENTRIES for index in self.l1_dirty}):
            piece = self.l1[start * _SECTOR_ENTRIES : end * _SECTOR_ENTRIES]
            self._file.write(self._header.l1_offset + start * 512, table_to_bytes(piece))
        return True


def _runs(sectors: set[int]) -> list[tuple[int, int]]:
    """Half-open runs of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for sector in sorted(sectors):
        if runs and runs[-1][1] == sector:
            runs[-1] = (runs[-1][0], sector + 1)
        else:
            runs.append((sector, sector + 1))
    return runs
