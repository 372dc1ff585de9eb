"""Checking and repairing the tables of sparse VMDK extents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sublet.block.description import CheckReport
from sublet.block.vmdk.layout import GTE_UNALLOCATED, SECTOR

if TYPE_CHECKING:
    from sublet.block.vmdk.grains import Grains

_UNITS_MAXIMUM: Final = 1 << 28
"""Grains of the largest file whose use is counted."""
_METADATA, _GRAIN = 1, 2


class _Use:
    """What each unit of a file, as large as a grain, holds.

    Grains need not begin at a unit. Where one does not, holes are neither counted nor filled.
    """

    def __init__(self, grains: Grains) -> None:
        self._size = grains.cluster_size
        self._units = bytearray(min(-(-grains.file.size() // self._size), _UNITS_MAXIMUM))
        self._unaligned: set[int] = set()
        self._whole = len(self._units) < _UNITS_MAXIMUM
        for start, end in [(0, grains.first_grain), *grains.metadata()]:
            first, last = start // self._size, min(-(-end // self._size), len(self._units))
            self._units[first:last] = bytes([_METADATA]) * max(0, last - first)

    def add(self, host: int) -> bool:
        """A grain is at byte ``host``; False when another is there already."""
        unit, rest = divmod(host, self._size)
        if rest or self._unaligned:
            self._whole = False
            known = host in self._unaligned
            self._unaligned.add(host)
            return not known
        if unit >= len(self._units):
            return True
        known = self._units[unit] == _GRAIN
        self._units[unit] = _GRAIN
        return not known

    def holes(self) -> int:
        """Units that hold nothing."""
        return self._units.count(0) if self._whole else 0

    def moves(self) -> dict[int, int]:
        """Sectors of the last grains, and those of the holes that they may move to."""
        moves: dict[int, int] = {}
        step = self._size // SECTOR
        hole, last = self._units.find(0), self._units.rfind(_GRAIN)
        while self._whole and 0 <= hole < last:
            moves[last * step] = hole * step
            hole, last = self._units.find(0, hole + 1), self._units.rfind(_GRAIN, 0, last)
        return moves


def check_grains(grains: Grains, report: CheckReport, *, repair: bool) -> None:
    """Compare tables with each other and with the file.

    Repair makes both tables say the same, forgets grains that lie on metadata, copies a grain that two
    parts of the disk share, lengthens a file that was cut, and moves the last grains into unused places.

    A table that is behind its twin is what a crash leaves: not an error, but a leak.
    """
    name = grains.file.path.name
    grains.protect()
    if not _check_tables_inside(grains, report):
        return
    _check_redundant(grains, report, repair)
    use = _Use(grains)
    for cluster, entry in allocated(grains):
        _check_entry(grains, report, use, cluster, entry, repair)
    if repair:
        grains.flush()
    leaked = use.holes()
    if leaked:
        report.leak(f"{name}: {leaked} grains of the file are in no table", count=leaked)
    if leaked and repair:
        close_holes(grains)
        report.leaks_repaired += leaked - _count_holes(grains)


def allocated(grains: Grains) -> Iterator[tuple[int, int]]:
    """Clusters that have a grain, and their entries, as the file has them."""
    limit = -(-grains.size // grains.cluster_size)
    for number, sector in enumerate(grains.directory):
        if not sector:
            continue
        first = number * grains.page_entries
        for within, entry in enumerate(grains.table(sector)):
            if entry and first + within < limit and grains.grain_of(entry) is not None:
                yield first + within, entry


def close_holes(grains: Grains) -> None:
    """Move the last grains of the file to where nothing is, and cut the file. Everything is flushed."""
    use = _Use(grains)
    if not all(use.add(entry * SECTOR) for _, entry in allocated(grains)):
        return
    moves = use.moves()
    for source, target in moves.items():
        grains.copy_grain(source * SECTOR, target * SECTOR)
    grains.file.flush()
    for cluster, entry in allocated(grains):
        if entry in moves:
            grains.set_entry(cluster, moves[entry])
    grains.flush()
    grains.cut_file(_end(grains))


def _count_holes(grains: Grains) -> int:
    use = _Use(grains)
    for _, entry in allocated(grains):
        use.add(entry * SECTOR)
    return use.holes()


def _end(grains: Grains) -> int:
    """Where the last thing in the file ends."""
    grain = max((entry * SECTOR + grains.cluster_size for _, entry in allocated(grains)), default=0)
    return max(grain, grains.metadata()[-1][1], grains.first_grain)


def _check_tables_inside(grains: Grains, report: CheckReport) -> bool:
    """Whether every table is in the file; one that is not cannot be mended."""
    size, inside = grains.file.size(), True
    for number, sector in enumerate(grains.directory):
        if sector and sector * SECTOR + grains.table_size > size:
            report.error(f"grain directory: table {number} is at sector {sector}, past the file's end")
            inside = False
    return inside


def _check_redundant(grains: Grains, report: CheckReport, repair: bool) -> None:
    second = grains.redundant
    if second is None:
        return
    for number, (sector, twin) in enumerate(zip(grains.directory, second, strict=True)):
        if not sector or not twin:
            continue
        table, other = grains.table(sector), grains.table(twin)
        if table == other:
            continue
        for within, (entry, copy) in enumerate(zip(table, other, strict=True)):
            if entry != copy:
                _check_pair(grains, report, number, within, entry, copy, repair=repair)
    if repair:
        grains.flush()


def _check_pair(
    grains: Grains, report: CheckReport, number: int, within: int, entry: int, copy: int, *, repair: bool
) -> None:
    """Two entries that differ: where one has no grain, the one that has is newer.

    Grains of the same content are one that was being moved.
    """
    where = f"grain table {number}, entry {within}: {entry}, in its redundant copy {copy}"
    hosts = grains.grain_of(entry), grains.grain_of(copy)
    if hosts[0] is None or hosts[1] is None:
        report.leak(where, repaired=repair)
        newer = max(entry, copy)
    elif grains.same_content(hosts[0], hosts[1]):
        report.leak(where, repaired=repair)
        newer = entry
    else:
        report.error(where, repaired=repair)
        newer = entry
    if repair:
        grains.set_entry(number * grains.page_entries + within, newer)


def _check_entry(
    grains: Grains, report: CheckReport, use: _Use, cluster: int, entry: int, repair: bool
) -> None:
    host, size, name = entry * SECTOR, grains.cluster_size, grains.file.path.name
    if host + size > grains.file.size():
        report.error(f"{name}: grain {cluster} is at sector {entry}, past the file's end", repaired=repair)
        if repair:
            grains.file.truncate(host + size)
    elif grains.overlaps_metadata(host):
        report.error(f"{name}: grain {cluster} is at sector {entry}, where metadata is", repaired=repair)
        if repair:
            grains.set_entry(cluster, GTE_UNALLOCATED)
    elif not use.add(host):
        report.error(f"{name}: grain {cluster} shares sector {entry} with another", repaired=repair)
        if repair:
            copy = grains.new_grain()
            grains.copy_grain(host, copy)
            grains.set_entry(cluster, grains.entry_of(copy))
