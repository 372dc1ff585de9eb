"""Reading and writing through tables of cluster pointers: what VDI blocks and VMDK grains have in common.

A cluster is in the file (``DATA``), known to be zero, or unallocated: then what lies below answers, a
parent or zeroes. Clusters never move while the image is open for its user, and a pointer reaches the file
only after what it points to is on stable storage: ``flush`` is barrier, pointers, barrier. So a crash
leaves at most clusters that nobody points to.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

from sublet.block.contract import BlockStatus
from sublet.block.description import MapExtent
from sublet.block.entries import EntryPages
from sublet.block.hostfile import HostFile
from sublet.block.pieces import PARENT, Piece, is_plain, stored_in
from sublet.block.pieces import ZERO as ZERO_PIECE
from sublet.block.places import Places

UNALLOCATED = -1
"""In place of a cluster's offset in the file: what lies below answers."""
ZERO = -2
"""In place of a cluster's offset in the file: zeroes."""
_PENDING_MAXIMUM = 1 << 16
_MAP_PAGES = 4096

ReadBelow = Callable[[int, memoryview], None]
"""Fills a view with what the parent holds at an offset of the store."""


class Run(NamedTuple):
    """Neighbouring clusters, or parts of them, that are stored side by side."""

    host: int
    """Offset in the file, or ``UNALLOCATED`` or ``ZERO``."""
    size: int


class ClusterStore(ABC):
    """``size`` bytes in clusters of one file. Any thread may call any method.

    Args:
        file: The host's file.
        size: Bytes that the store holds; the last cluster may be cut short.
        cluster_size: Bytes, a power of two.
        page_entries: Pointers of one page of the table.
        lock: Guards the tables; held while new clusters are filled.
        below: The parent; None for zeroes.
    """

    def __init__(
        self,
        file: HostFile,
        *,
        size: int,
        cluster_size: int,
        page_entries: int,
        lock: AbstractContextManager[object],
        below: ReadBelow | None,
    ) -> None:
        self.file = file
        self.size = size
        self.cluster_size = cluster_size
        self.below = below
        self._page_entries = page_entries
        self._empty_page = array("I", [self._empty_entry]) * page_entries
        self._pages = EntryPages(file, page_entries)
        self.places: Places | None = None
        """Told where clusters are, if the store is the whole disk."""
        self._table_lock = lock
        self._flush_lock = threading.Lock()
        self._file_size = file.size()

    # What a format says. All are called with the lock held.

    @abstractmethod
    def _page_offset(self, number: int) -> int | None:
        """Where page ``number`` of the table is; None when all of its clusters are unallocated."""

    @abstractmethod
    def _locate(self, entry: int) -> int:
        """Where the cluster of a pointer is in the file, or ``UNALLOCATED`` or ``ZERO``.

        Raises:
            CorruptImage: It points nowhere.
        """

    @property
    @abstractmethod
    def _entry_step(self) -> int:
        """By how much the pointers of two clusters differ that lie side by side in the file."""

    @abstractmethod
    def _is_run(self, first: int, last: int) -> bool:
        """Whether ``_locate`` takes every pointer from ``first``, which it does take, to ``last``."""

    @property
    @abstractmethod
    def _empty_entry(self) -> int:
        """The pointer of an unallocated cluster."""

    @property
    @abstractmethod
    def _zero_entry(self) -> int | None:
        """The pointer of a cluster that is zero, where the format has one."""

    @abstractmethod
    def _allocate(self, count: int) -> tuple[int, int]:
        """Up to ``count`` new clusters, side by side in the file, that read as zeroes: offset and number."""

    @abstractmethod
    def _link(self, cluster: int, host: int) -> None:
        """Point ``cluster`` to what is at ``host``, or to ``ZERO``, through ``_pages``."""

    @abstractmethod
    def _before_barrier(self) -> None:
        """Write what has to reach the file before new pointers do."""

    # What a format offers to its image.

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view``."""
        for host, size in self._find(offset, len(view)):
            if host >= 0:
                self.file.readinto(host, view[:size])
            elif host == ZERO or self.below is None:
                view[:size] = bytes(size)
            else:
                self.below(offset, view[:size])
            view, offset = view[size:], offset + size

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of ``view``."""
        for host, size in self._find(offset, len(view)):
            if host >= 0:
                self._write_in_place(host, view[:size])
            else:
                self._write_unallocated(offset, view[:size])
            view, offset = view[size:], offset + size
        self._limit_pending()

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """Make the range zero; clusters in the file stay there, as holes with ``unmap``."""
        with self._table_lock:
            while size:
                run = self._runs(offset, size, first_only=True)[0]
                if run.host >= 0:
                    self.file.write_zeroes(run.host, run.size, unmap=unmap)
                elif run.host == UNALLOCATED and self.below is not None:
                    self._hide_below(offset, run.size)
                offset, size = offset + run.size, size - run.size
        self._limit_pending()

    def discard(self, offset: int, size: int) -> None:
        """Make holes of the range's clusters, which stay where they are."""
        with self._table_lock:
            while size:
                run = self._runs(offset, size, first_only=True)[0]
                if run.host >= 0:
                    self.file.discard(run.host, run.size)
                offset, size = offset + run.size, size - run.size

    def map(self, offset: int, size: int) -> MapExtent:
        """The extent that begins at ``offset``, of this image alone."""
        with self._table_lock:
            host, length = self._runs(offset, size, first_only=True)[0]
        if host == UNALLOCATED:
            return MapExtent(offset, length, BlockStatus.ZERO, present=False)
        if host == ZERO:
            return MapExtent(offset, length, BlockStatus.ZERO)
        stored = self.file.extent(host, length)
        return MapExtent(offset, max(stored.size, 1), stored.status, host_offset=host, file=self.file.path)

    def stored(self, offset: int, size: int) -> list[Piece]:
        """See ``Image.stored``, of this image alone."""
        with self._table_lock:
            runs = self._runs(offset, size)
        return [
            stored_in(self.file, host, length)
            if host >= 0
            else Piece(ZERO_PIECE if host == ZERO else PARENT, 0, length)
            for host, length in runs
        ]

    @property
    def can_place(self) -> bool:
        """See ``Image.can_place``."""
        return self.below is None and is_plain(self.file)

    def place(self, offset: int, size: int) -> list[Piece]:
        """See ``Image.place``, of one range."""
        pieces: list[Piece] = []
        with self._table_lock:
            while size:
                host, done = self._runs(offset, size, first_only=True)[0]
                if host < 0:
                    host, done = self._place_new(offset, done)
                    self._link_new(offset, host, done)
                pieces.append(stored_in(self.file, host, done))
                offset, size = offset + done, size - done
        self._limit_pending()
        return pieces

    def flush(self) -> None:
        """Barrier, pointers, barrier."""
        with self._flush_lock:
            with self._table_lock:
                changed = self._pages.take_changes()
                self._before_barrier()
            self.file.flush()
            if changed:
                with self._table_lock:
                    self._pages.write_changes()
                self.file.flush()

    # Inside.

    def _find(self, offset: int, size: int) -> Sequence[tuple[int, int]]:
        """Where the range is now, as ``_runs`` has it; quicker for part of one cluster."""
        cluster, skip = divmod(offset, self.cluster_size)
        with self._table_lock:
            if skip + size > self.cluster_size:
                runs = self._runs(offset, size)
                self._tell(offset, runs)
                return runs
            number, within = divmod(cluster, self._page_entries)
            page = self._page_offset(number)
            if page is None:
                return ((UNALLOCATED, size),)
            host = self._locate(self._pages.page(page)[within])
            if self.places is not None and host >= 0:
                self.places.found(cluster, host)
        return ((host + skip if host >= 0 else host, size),)

    def _tell(self, offset: int, runs: Sequence[Run]) -> None:
        """Say where the clusters of a range are, which begins at ``offset``."""
        for host, size in runs if self.places is not None else ():
            first, skip = divmod(offset, self.cluster_size)
            if host >= 0 and self.places is not None:
                for number in range(-(-(skip + size) // self.cluster_size)):
                    self.places.found(first + number, host - skip + number * self.cluster_size)
            offset += size

    def _runs(self, offset: int, size: int, *, first_only: bool = False) -> list[Run]:
        """Where the range is, in order; adjacent parts merged. ``first_only``: the first run, perhaps cut."""
        runs: list[Run] = []
        pages = 0
        while size:
            cluster, skip = divmod(offset, self.cluster_size)
            number, within = divmod(cluster, self._page_entries)
            room = (self._page_entries - within) * self.cluster_size - skip
            piece = min(size, room)
            self._page_runs(number, within, skip, piece, runs, first_only=first_only)
            offset, size, pages = offset + piece, size - piece, pages + 1
            if first_only and (len(runs) > 1 or pages == _MAP_PAGES):
                break
        return runs

    def _page_runs(
        self, number: int, within: int, skip: int, size: int, runs: list[Run], *, first_only: bool
    ) -> None:
        """Append the runs of ``size`` bytes of a page, from ``skip`` bytes into its cluster ``within`` on.

        ``first_only``: leave off when there are two.
        """
        offset = self._page_offset(number)
        if offset is None:
            _append(runs, UNALLOCATED, size)
            return
        page = self._pages.page(offset)
        if size > self.cluster_size and page == self._empty_page:
            _append(runs, UNALLOCATED, size)
            return
        while size and not (first_only and len(runs) > 1):
            clusters = self._count_alike(page, within, -(-(skip + size) // self.cluster_size))
            length = min(size, clusters * self.cluster_size - skip)
            host = self._locate(page[within])
            _append(runs, host + skip if host >= 0 else host, length)
            within, skip, size = within + clusters, 0, size - length

    def _count_alike(self, page: array[int], within: int, limit: int) -> int:
        """How many clusters from ``within`` on, up to ``limit``, lie side by side, or are all nowhere.

        Perhaps fewer: halving finds the longest runs fast, and ``_append`` puts the rest together.
        """
        first = page[within]
        step = self._entry_step if self._locate(first) >= 0 else 0
        while limit > 1:
            last = first + (limit - 1) * step
            if page[within + limit - 1] == last and (not step or self._is_run(first, last)):
                alike = array("I", range(first, last + 1, step) if step else (first,) * limit)
                if page[within : within + limit] == alike:
                    return limit
            limit //= 2
        return 1

    def _write_in_place(self, host: int, view: memoryview) -> None:
        self.file.write(host, view)
        if host + len(view) > self._file_size:
            with self._table_lock:
                self._file_size = max(self._file_size, host + len(view))

    def _write_unallocated(self, offset: int, view: memoryview) -> None:
        """Write to clusters that were not in the file; another thread may have put some there meanwhile."""
        with self._table_lock:
            while view:
                run = self._runs(offset, len(view), first_only=True)[0]
                if run.host >= 0:
                    done = run.size
                    self.file.write(run.host, view[:done])
                else:
                    done = self._fill(offset, view[: run.size], run.host)
                view, offset = view[done:], offset + done

    def _fill(self, offset: int, view: memoryview, state: int) -> int:
        """Write to new clusters, as many as are side by side; bytes of ``view`` that were taken."""
        start, head = offset & -self.cluster_size, offset & (self.cluster_size - 1)
        place, size = self._place_new(offset, len(view))
        if state == UNALLOCATED and self.below is not None:
            end = -(-(head + size) // self.cluster_size) * self.cluster_size
            self._copy_below(start, place - head, 0, head)
            self._copy_below(start, place - head, head + size, end)
        self.file.write(place, view[:size])
        self._link_new(offset, place, size)
        return size

    def _place_new(self, offset: int, size: int) -> tuple[int, int]:
        """New clusters for a range, as many as are side by side: where it is in the file, and its bytes.

        Nothing points to them yet.
        """
        head = offset & (self.cluster_size - 1)
        host, count = self._allocate(-(-(head + size) // self.cluster_size))
        area = count * self.cluster_size
        size = min(size, area - head)
        # Other programs read a cluster in full, so the file has to reach its end.
        if host + area > self._file_size:
            if head + size < area:
                self.file.truncate(host + area)
            self._file_size = host + area
        return host + head, size

    def _link_new(self, offset: int, place: int, size: int) -> None:
        """Point to what ``_place_new`` gave."""
        first, head = divmod(offset, self.cluster_size)
        for number in range(-(-(head + size) // self.cluster_size)):
            self._link(first + number, place - head + number * self.cluster_size)

    def _copy_below(self, start: int, host: int, begin: int, end: int) -> None:
        """Copy the parent's bytes ``begin`` to ``end`` of the clusters from ``start`` on to ``host``."""
        end = min(end, self.size - start)
        if begin >= end or self.below is None:
            return
        data = bytearray(end - begin)
        self.below(start + begin, memoryview(data))
        self.file.write(host + begin, data)

    def _hide_below(self, offset: int, size: int) -> None:
        """Make unallocated clusters zero, although the parent is not."""
        end = offset + size
        while offset < end:
            cluster, head = divmod(offset, self.cluster_size)
            length = min(end - offset, self.cluster_size - head)
            whole = head == 0 and (length == self.cluster_size or offset + length == self.size)
            if whole and self._zero_entry is not None:
                self._link(cluster, ZERO)
            else:
                self._write_unallocated(offset, memoryview(bytes(length)))
            offset += length

    def _limit_pending(self) -> None:
        if self._pages.changes > _PENDING_MAXIMUM:
            self.flush()


def _append(runs: list[Run], host: int, size: int) -> None:
    if runs:
        last = runs[-1]
        if last.host == host if host < 0 else last.host >= 0 and last.host + last.size == host:
            runs[-1] = Run(last.host, last.size + size)
            return
    runs.append(Run(host, size))
