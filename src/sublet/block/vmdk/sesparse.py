"""seSparse extents, which ESXi 6.5 and later use for snapshots: read only.

Reference: QEMU 7.2 "block/vmdk.c"; VMware documents nothing.
"""

from __future__ import annotations

import struct
from typing import Final

from sublet.block.clusters import UNALLOCATED, ZERO, ReadBelow
from sublet.block.contract import BlockStatus
from sublet.block.description import CheckReport, MapExtent
from sublet.block.hostfile import HostFile, read_structure, refuse_readonly
from sublet.block.vmdk.extent import SelfReading
from sublet.block.vmdk.layout import SECTOR, SeSparseHeader
from sublet.errors import CorruptImage, UsageError

_GRAIN: Final = SeSparseHeader.GRAIN_SECTORS * SECTOR
_TABLE: Final = SeSparseHeader.TABLE_SECTORS * SECTOR
_GTES: Final = SeSparseHeader.GTES_PER_GT
_DIRECTORY_ALLOCATED: Final = 0x1000_0000
"""Upper half of a directory entry that has a table; the lower half is the table's number."""
_TABLES_CACHED: Final = 64


class SeSparseExtent(SelfReading):
    """A seSparse extent (``Extent``); writing is refused.

    Args:
        file: The extent's file.
        below: Reads what the parent holds of the extent.

    Raises:
        CorruptImage: A header or the directory makes no sense.
        UnsupportedImage: Its journal is not empty, or its version is another.
    """

    cluster_size = _GRAIN
    unclean = False

    def __init__(self, file: HostFile, *, below: ReadBelow | None) -> None:
        self.file = file
        self.below = below
        name = str(file.path)
        header = SeSparseHeader.parse(file.read(0, SECTOR), name)
        volatile = read_structure(file, header.volatile_offset * SECTOR, SECTOR, "volatile header")
        SeSparseHeader.check_volatile(volatile, name)
        self.header = header
        self.size = header.capacity * SECTOR
        data = read_structure(file, header.gd_offset * SECTOR, 8 * header.grain_tables, "grain directory")
        self._directory: tuple[int, ...] = struct.unpack(f"<{header.grain_tables}Q", data)
        self._tables: dict[int, tuple[int, ...]] = {}

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view``."""
        while view:
            place, length = self._run(offset, len(view))
            if place >= 0:
                self.file.readinto(place, view[:length])
            elif place == UNALLOCATED and self.below is not None:
                self.below(offset, view[:length])
            else:
                view[:length] = bytes(length)
            view, offset = view[length:], offset + length

    def write(self, offset: int, view: memoryview) -> None:
        """Refused."""
        raise refuse_readonly(self.file.path)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """Refused."""
        raise refuse_readonly(self.file.path)

    def discard(self, offset: int, size: int) -> None:
        """Refused."""
        raise refuse_readonly(self.file.path)

    def map(self, offset: int, size: int) -> MapExtent:
        """What begins at ``offset``, up to the end of what is stored side by side."""
        place, length = self._run(offset, size)
        if place == UNALLOCATED:
            return MapExtent(offset, length, BlockStatus.ZERO, present=False)
        if place == ZERO:
            return MapExtent(offset, length, BlockStatus.ZERO)
        return MapExtent(offset, length, BlockStatus.DATA, host_offset=place, file=self.file.path)

    def flush(self) -> None:
        """Nothing was written."""

    def resize(self, size: int) -> None:
        """Refused."""
        raise UsageError(f"{self.file.path}: seSparse extents cannot be resized")

    def check(self, report: CheckReport, *, repair: bool) -> None:
        """Every grain has to lie in the file."""
        for table, entry in enumerate(self._directory):
            if entry:
                self._check_table(report, table)

    def finish(self) -> None:
        """Nothing marks it."""

    def _check_table(self, report: CheckReport, table: int) -> None:
        try:
            self._table(table)
        except CorruptImage as error:
            report.error(error.message)
            return
        for number in range(table * _GTES, min((table + 1) * _GTES, -(-self.size // _GRAIN))):
            try:
                place = self._place(number)
            except CorruptImage as error:
                report.error(error.message)
                continue
            if place >= 0 and place + _GRAIN > self.file.size():
                report.error(f"{self.file.path.name}: grain {number} lies past the file's end")

    def _run(self, offset: int, size: int) -> tuple[int, int]:
        """Where ``offset`` is stored, and how many bytes lie side by side from there."""
        number, skip = divmod(offset, _GRAIN)
        first = self._place(number)
        length = _GRAIN - skip
        while length < size and length < 1 << 26:
            number += 1
            place = self._place(number)
            if place != (first + skip + length if first >= 0 else first):
                break
            length += _GRAIN
        return (first + skip if first >= 0 else first), min(size, length)

    def _place(self, number: int) -> int:
        """Byte of the file where a grain is, or ``UNALLOCATED`` or ``ZERO``."""
        entry = self._table(number // _GTES)[number % _GTES]
        kind = entry >> 60
        if kind == 3:
            index = (entry >> 48 & 0xFFF) | (entry & 0xFFFF_FFFF_FFFF) << 12
            if index >= 1 << 48:
                raise CorruptImage(f"{self.file.path}: grain table: grain {number} is past any end")
            return self.header.grains_offset * SECTOR + index * _GRAIN
        if kind in (1, 2):
            return ZERO
        if entry:
            raise CorruptImage(f"{self.file.path}: grain table: grain {number} is {entry:#x}")
        return UNALLOCATED

    def _table(self, number: int) -> tuple[int, ...]:
        found = self._tables.get(number)
        if found is None:
            found = self._read_table(number)
            while len(self._tables) >= _TABLES_CACHED:
                self._tables.pop(next(iter(self._tables)), None)
            self._tables[number] = found
        return found

    def _read_table(self, number: int) -> tuple[int, ...]:
        entry = self._directory[number]
        if not entry:
            return (0,) * _GTES
        if entry >> 32 != _DIRECTORY_ALLOCATED:
            raise CorruptImage(f"{self.file.path}: grain directory: entry {number} is {entry:#x}")
        offset = self.header.tables_offset * SECTOR + (entry & 0xFFFF_FFFF) * _TABLE
        return struct.unpack(f"<{_GTES}Q", read_structure(self.file, offset, _TABLE, "grain table"))
