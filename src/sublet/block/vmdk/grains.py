"""Sparse extents whose grains are stored as they are: hosted ones and ESX's COWD.

The grain directory is kept in memory, grain tables are cached. A new grain goes to the end of the file.
Which parts of the file are metadata is known, so that a damaged or malicious grain table cannot make a
guest's write change a header, a descriptor or a table.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import AbstractContextManager

from sublet.block import clusters
from sublet.block.clusters import ClusterStore, ReadBelow
from sublet.block.description import CheckReport
from sublet.block.entries import decode, encode
from sublet.block.hostfile import HostFile, read_structure
from sublet.block.pieces import Piece
from sublet.block.vmdk import check as checker
from sublet.block.vmdk.layout import (
    GTE_UNALLOCATED,
    GTE_ZEROED,
    MAX_GRAIN_DIRECTORY,
    MAX_SECTORS,
    SECTOR,
    CowdHeader,
    Flags,
    HostedHeader,
    align,
    directory_sectors,
    sectors,
    table_sectors,
)
from sublet.errors import CorruptImage, HostRefused, UsageError

Span = tuple[int, int]
"""First byte, and the byte after the last."""


class Grains(ClusterStore):
    """Grains behind a directory and tables (``Extent``).

    Args:
        file: The extent's file.
        size: Bytes of the disk that it holds.
        grain_size: Bytes of a grain.
        gtes_per_gt: Entries of a table.
        lock: The image's lock.
        below: Reads what the parent holds of the extent.
        directory: Sectors of the tables, 0 for one that is not there yet.
        directory_offset: Byte of the file where the directory is.
    """

    def __init__(
        self,
        file: HostFile,
        *,
        size: int,
        grain_size: int,
        gtes_per_gt: int,
        lock: AbstractContextManager[object],
        below: ReadBelow | None,
        directory: array[int],
        directory_offset: int,
    ) -> None:
        super().__init__(
            file, size=size, cluster_size=grain_size, page_entries=gtes_per_gt, lock=lock, below=below
        )
        self.directory = directory
        self.directory_offset = directory_offset
        self.table_size = sectors(4 * gtes_per_gt) * SECTOR
        self._starts: list[int] = []
        self._ends: list[int] = []
        if not file.readonly:
            self.protect()

    # What a kind of extent says.

    @abstractmethod
    def _fixed_spans(self) -> list[Span]:
        """Header, descriptor and directories."""

    @property
    def redundant(self) -> array[int] | None:
        """The second directory, of tables that say the same."""
        return None

    @property
    def redundant_offset(self) -> int:
        """Byte of the file where the second directory is."""
        return 0

    @property
    def first_grain(self) -> int:
        """Byte of the file before which no grain is."""
        return CowdHeader.SIZE

    # What check needs.

    @property
    def page_entries(self) -> int:
        """Entries of a table."""
        return self._page_entries

    def metadata(self) -> list[Span]:
        """Everything in the file that is no grain, in order."""
        tables = [self.directory, *([self.redundant] if self.redundant is not None else [])]
        spans = self._fixed_spans()
        for table in tables:
            spans += [(entry * SECTOR, entry * SECTOR + self.table_size) for entry in table if entry]
        return _merge(spans)

    def table(self, sector: int) -> array[int]:
        """A table as the file has it."""
        return decode(self.file.read(sector * SECTOR, 4 * self._page_entries))

    def set_entry(self, cluster: int, entry: int) -> None:
        """Change both tables' entry, from the next ``flush`` on in the file too."""
        number, within = divmod(cluster, self._page_entries)
        offset = self._page_offset(number)
        if offset is None:
            offset = self._add_table(number)
        self._pages.set(offset, within, entry)
        if self.redundant is not None and self.redundant[number]:
            self._pages.set(self.redundant[number] * SECTOR, within, entry)
        if self.places is not None:
            self.places.gone(cluster)

    def overlaps_metadata(self, host: int, last: int | None = None) -> bool:
        """Whether grains at bytes ``host`` to ``last`` would lie on something else; False if read-only."""
        place = bisect_right(self._starts, (last or host) + self.cluster_size - 1) - 1
        return place >= 0 and self._ends[place] > host

    def copy_grain(self, source: int, target: int) -> None:
        """Copy a grain's bytes from byte ``source`` of the file to ``target``."""
        self.file.write(target, self.file.read(source, self.cluster_size))
        self._file_size = max(self._file_size, target + self.cluster_size)

    def same_content(self, first: int, second: int) -> bool:
        """Whether the grains at two bytes of the file hold the same."""
        return self.file.read(first, self.cluster_size) == self.file.read(second, self.cluster_size)

    def new_grain(self) -> int:
        """Byte of the file where a new grain is."""
        with self._table_lock:
            host = self._allocate(1)[0]
            self.file.truncate(host + self.cluster_size)
            self._file_size = host + self.cluster_size
            return host

    def clear(self) -> None:
        """Make every grain unallocated. Everything is flushed."""
        with self._table_lock:
            for directory in (self.directory, self.redundant or ()):
                for sector in directory:
                    if sector:
                        self.file.write(sector * SECTOR, bytes(self.table_size))
            self.file.flush()
            self._pages.forget()
            self.cut_file(max(self.metadata()[-1][1], self.first_grain))

    def cut_file(self, end: int) -> None:
        """Give back what lies past byte ``end``."""
        if end < self._file_size:
            self.file.truncate(end)
            self._file_size = end

    def entry_of(self, host: int) -> int:
        """The table entry of a grain at byte ``host``."""
        return host // SECTOR

    def grain_of(self, entry: int) -> int | None:
        """Byte of the file where an entry's grain is; None when it has none."""
        if entry == GTE_UNALLOCATED or (entry == GTE_ZEROED and self._zero_entry is not None):
            return None
        return entry * SECTOR

    # Extent

    @property
    def unclean(self) -> bool:
        """Whether it says that it was not closed."""
        return False

    def check(self, report: CheckReport, *, repair: bool) -> None:
        """See ``check.check_grains``."""
        with self._table_lock:
            checker.check_grains(self, report, repair=repair)

    def finish(self) -> None:
        """Nothing marks it."""

    def resize(self, size: int) -> None:
        """Refused.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"{self.file.path}: VMDK extents of this kind cannot be resized")

    # ClusterStore

    def _page_offset(self, number: int) -> int | None:
        sector = self.directory[number]
        return sector * SECTOR if sector else None

    def _locate(self, entry: int) -> int:
        if entry == GTE_UNALLOCATED:
            return clusters.UNALLOCATED
        if entry == GTE_ZEROED and self._zero_entry is not None:
            return clusters.ZERO
        host = entry * SECTOR
        if self._starts and self.overlaps_metadata(host):
            raise CorruptImage(f"{self.file.path}: grain table: a grain at sector {entry}, where metadata is")
        return host

    @property
    def _entry_step(self) -> int:
        return self.cluster_size // SECTOR

    def _is_run(self, first: int, last: int) -> bool:
        return not self.overlaps_metadata(first * SECTOR, last * SECTOR)

    @property
    def _empty_entry(self) -> int:
        return GTE_UNALLOCATED

    @property
    def _zero_entry(self) -> int | None:
        return None

    def _allocate(self, count: int) -> tuple[int, int]:
        host = align(self._end(), self.cluster_size)
        room = (MAX_SECTORS * SECTOR - host) // self.cluster_size
        if room < 1:
            raise HostRefused(
                f"{self.file.path} has reached the 2 TiB that a sparse VMDK extent can be",
                remedy="Convert the disk to twoGbMaxExtentSparse or to another format.",
            )
        return host, min(count, room)

    def _link(self, cluster: int, host: int) -> None:
        self.set_entry(cluster, GTE_ZEROED if host == clusters.ZERO else self.entry_of(host))

    def _before_barrier(self) -> None:
        """Nothing."""

    # Inside.

    def _end(self) -> int:
        """Where nothing has been yet: also past what a write left that failed."""
        self._file_size = max(self._file_size, self.file.size())
        return self._file_size

    def _append(self, size: int) -> int:
        """Byte of the file where ``size`` new zeroes begin.

        Raises:
            HostRefused: That is past what a table can point to.
        """
        start = align(self._end(), SECTOR)
        if (start + size) // SECTOR > MAX_SECTORS:
            raise HostRefused(f"{self.file.path} has reached the 2 TiB that a sparse VMDK extent can be")
        self.file.truncate(start + size)
        self._file_size = start + size
        return start

    def _add_table(self, number: int) -> int:
        """Make the table that the directory does not have."""
        start = self._append(self.table_size)
        self.directory[number] = start // SECTOR
        self._pages.set(self.directory_offset, number, start // SECTOR)
        self._protect_new(start, self.table_size)
        return start

    def protect(self) -> None:
        """Find out where metadata is."""
        spans = self.metadata()
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]

    def _protect_new(self, start: int, size: int) -> None:
        """Metadata at the file's end."""
        self._starts.append(start)
        self._ends.append(start + size)
        if self.places is not None:
            # An entry of a malicious image may have pointed there before.
            self.places.forget()
            self.places.settle()


class HostedGrains(Grains):
    """A hosted sparse extent that is not compressed (``Extent``)."""

    def __init__(
        self,
        file: HostFile,
        header: HostedHeader,
        *,
        size: int,
        lock: AbstractContextManager[object],
        below: ReadBelow | None,
    ) -> None:
        self.header = header
        self._redundant: array[int] | None = None
        if header.flags & Flags.REDUNDANT_TABLES and header.redundant_gd_offset:
            offset = header.redundant_gd_offset * SECTOR
            what = "redundant grain directory"
            self._redundant = decode(read_structure(file, offset, 4 * header.grain_tables, what))
        offset = header.gd_offset * SECTOR
        super().__init__(
            file,
            size=size,
            grain_size=header.grain_size * SECTOR,
            gtes_per_gt=header.gtes_per_gt,
            lock=lock,
            below=below,
            directory=decode(read_structure(file, offset, 4 * header.grain_tables, "grain directory")),
            directory_offset=offset,
        )

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of ``view``; the first write marks the extent as open."""
        self._mark(unclean=True)
        super().write(offset, view)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """Make the range zero."""
        self._mark(unclean=True)
        super().write_zeroes(offset, size, unmap=unmap)

    def place(self, offset: int, size: int) -> list[Piece]:
        """Give a range storage."""
        self._mark(unclean=True)
        return super().place(offset, size)

    def finish(self) -> None:
        """Mark it closed cleanly."""
        if not self.file.readonly:
            self._mark(unclean=False)

    def resize(self, size: int) -> None:
        """Change the capacity; a directory that grows out of its place is written anew at the file's end."""
        with self._table_lock:
            self.flush()
            if size < self.size:
                self._shrink(size)
            else:
                self._grow(size)

    @property
    def unclean(self) -> bool:
        """Whether it was not closed."""
        return self.header.unclean

    @property
    def redundant(self) -> array[int] | None:
        """The second directory, where the header says that there is one."""
        return self._redundant

    @property
    def redundant_offset(self) -> int:
        """Byte of the file where the second directory is."""
        return self.header.redundant_gd_offset * SECTOR

    @property
    def first_grain(self) -> int:
        """Byte of the file before which no grain is."""
        return self.header.overhead * SECTOR

    @property
    def _zero_entry(self) -> int | None:
        return GTE_ZEROED if self.header.has_zeroed_grains else None

    def _fixed_spans(self) -> list[Span]:
        header = self.header
        parts = [(0, 1), (header.descriptor_offset, header.descriptor_size)]
        parts.append((header.gd_offset, directory_sectors(header)))
        if self._redundant is not None:
            parts.append((header.redundant_gd_offset, directory_sectors(header)))
        return [(start * SECTOR, (start + count) * SECTOR) for start, count in parts]

    def _mark(self, *, unclean: bool) -> None:
        if self.header.unclean is not unclean:
            with self._table_lock:
                self._write_header(self.header.replace(unclean=unclean))

    def _write_header(self, header: HostedHeader) -> None:
        self.header = header
        self.file.write(0, header.pack())

    def _shrink(self, size: int) -> None:
        first, end = align(size, self.cluster_size) // self.cluster_size, self.header.grain_tables
        for number in range(first // self._page_entries, end):
            offset = self._page_offset(number)
            if offset is None:
                continue
            for within, entry in enumerate(self._pages.page(offset).tolist()):
                cluster = number * self._page_entries + within
                if entry and cluster >= first:
                    self.set_entry(cluster, GTE_UNALLOCATED)
        self.flush()
        header = self.header.replace(capacity=size // SECTOR)
        self._adopt(header, self.directory[: header.grain_tables])
        report = CheckReport()
        self.check(report, repair=True)

    def _grow(self, size: int) -> None:
        old, capacity = self.size, self.header.capacity * SECTOR
        if size > capacity:
            self._add_capacity(size)
        self.size = size
        # What the descriptor had left out may hold something.
        rest = size if self.below is not None else min(size, max(capacity, align(old, self.cluster_size)))
        self.write_zeroes(old, rest - old, unmap=False)
        self.flush()

    def _add_capacity(self, size: int) -> None:
        header = self.header.replace(capacity=size // SECTOR)
        if header.grain_tables > MAX_GRAIN_DIRECTORY:
            raise UsageError(f"a VMDK extent of {size} bytes is too large")
        was = len(self.directory)
        primary = self._longer(self.directory, header)
        second = None if self._redundant is None else self._longer(self._redundant, header)
        if directory_sectors(header) > directory_sectors(self.header):
            room = directory_sectors(header) * SECTOR
            header = header.replace(gd_offset=self._append(room) // SECTOR)
            if second is not None:
                header = header.replace(redundant_gd_offset=self._append(room) // SECTOR)
            was = 0
        self.file.write(header.gd_offset * SECTOR + 4 * was, encode(primary[was:]))
        if second is not None:
            self.file.write(header.redundant_gd_offset * SECTOR + 4 * was, encode(second[was:]))
        self.file.flush()
        self._adopt(header, primary, second)

    def _longer(self, directory: array[int], header: HostedHeader) -> array[int]:
        """A directory with empty tables for the new capacity."""
        new = header.grain_tables - len(directory)
        step = table_sectors(header)
        start = self._append(new * step * SECTOR) // SECTOR
        return directory + array("I", range(start, start + new * step, step))

    def _adopt(self, header: HostedHeader, primary: array[int], second: array[int] | None = None) -> None:
        """One write of the header makes other directories and another capacity valid."""
        self._write_header(header)
        self.file.flush()
        self.directory, self.directory_offset = primary, header.gd_offset * SECTOR
        if self._redundant is not None:
            self._redundant = second if second is not None else self._redundant[: header.grain_tables]
        self.size = header.capacity * SECTOR
        self._pages.forget()
        self.protect()


def _merge(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
