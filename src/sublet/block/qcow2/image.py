"""An open QCOW2 image: from block numbers to clusters of the file, and back to nothing.

Order of writes. Data and new counts come first, then the L2 entries that refer to them, then the L1 entries
that refer to new L2 tables, with a barrier between each; last, counts of clusters that nothing refers to any
more go down (``write_metadata``). All of it waits in memory until ``flush``, so a crash at any point leaves
what the last flush made, and leaks at most.

Threads. ``lock`` guards all metadata. Data moves outside it where it stays in place, mostly past this module
altogether (``in_place``): a released cluster is not reused before what was under way has ended
(docs/theory/disks.md, "Past the format").

Reference: "QCOW2 image format" (QEMU 7.2, docs/interop/qcow2.txt).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from sublet.block.contract import BlockStatus
from sublet.block.description import (
    BackingReference,
    CheckReport,
    ImageInfo,
    MapExtent,
    Snapshot,
)
from sublet.block.format import Image, read_parent
from sublet.block.hostfile import Bytes, HostFile, descriptor
from sublet.block.pieces import OTHER, PARENT, ZERO, Piece, is_plain, stored_in
from sublet.block.qcow2 import bitmap_store, clearing
from sublet.block.qcow2 import layout as q
from sublet.block.qcow2.allocation import Allocation
from sublet.block.qcow2.bitmaps import Bitmaps, bit_runs
from sublet.block.qcow2.description import describe
from sublet.block.qcow2.mapping import Kind, Mapping
from sublet.block.qcow2.packed import PackedClusters
from sublet.block.qcow2.refcounts import Refcounts
from sublet.block.qcow2.snapshots import read_snapshots
from sublet.block.qcow2.tables import Tables
from sublet.core import InPlace

_PLACELESS: Final = {Kind.ZERO: ZERO, Kind.UNALLOCATED: PARENT, Kind.COMPRESSED: OTHER}


class Qcow2Image(Image):
    """A QCOW2 image of version 2 or 3 (``Image``). Made by ``qcow2.FORMAT.open``.

    Args:
        file: Its own file; closed with it.
        data: The external data file, or ``file``.
        backing: The open parent; closed with it.
    """

    format = "qcow2"

    def __init__(
        self,
        file: HostFile,
        header: q.Header,
        *,
        readonly: bool,
        data: HostFile | None = None,
        backing: Image | None = None,
    ) -> None:
        super().__init__(file.path, header.size, readonly=readonly)
        self.header = header
        self.file = file
        self.data = data or file
        self._backing = backing
        self._bits = header.cluster_bits
        self._cluster = header.cluster_size
        self._in_cluster = header.cluster_size - 1
        shape = (header.size, header.cluster_bits, header.extended_l2)
        self.in_place: InPlace = InPlace.clusters(descriptor(self.data), *shape, not readonly)
        self.tables = Tables(file, header, self.in_place)
        self.refcounts = Refcounts(file, header, self._switch_reftable)
        self.snapshot_records = read_snapshots(file, header)
        self.mapping = Mapping(file.path, header, self.tables)
        self.allocation = Allocation(self)
        self._packed = PackedClusters(self)
        self.reserve_tables()
        self.bitmaps = Bitmaps(file, header)

    def reserve_tables(self) -> None:
        """Keep the allocator away from the header and the top tables, whatever the counts say."""
        header = self.header
        spans = [
            (0, self._cluster),
            (header.l1_offset, header.l1_entries * 8),
            (header.reftable_offset, header.reftable_clusters * self._cluster),
        ]
        self.refcounts.reserve([range(o >> self._bits, (o + s - 1 >> self._bits) + 1) for o, s in spans])

    @property
    def backing(self) -> Image | None:
        """The open parent."""
        return self._backing

    @property
    def external_data(self) -> bool:
        """Whether guest data is in a file of its own, at its own offset."""
        return self.header.has_data_file

    @property
    def encrypted(self) -> bool:
        """Whether guest data is, with the image's own key."""
        return self.header.crypt_method != q.CRYPT_NONE

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Guards all metadata; may be taken again by who has it."""
        return self._lock

    # Reading

    def _readinto(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            with self._lock:
                kind, size, host = self.mapping.run(offset + done, len(view) - done)
            self._read_run(kind, host, offset + done, view[done : done + size])
            done += size

    def _read_run(self, kind: Kind, host: int, offset: int, view: memoryview) -> None:
        if kind is Kind.NORMAL:
            self.data.readinto(host, view)
        elif kind is Kind.ZERO:
            view[:] = bytes(len(view))
        elif kind is Kind.UNALLOCATED:
            read_parent(self._backing, offset, view)
        else:
            inside = offset & self._in_cluster
            view[:] = self._packed.read(host)[inside : inside + len(view)]

    # Writing

    def _write(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            with self._lock:
                size, host = self.mapping.in_place(offset + done, len(view) - done)
                if size:
                    self.bitmaps.mark(offset + done, size)
                    self.in_place.enter()
                else:
                    size = self.allocation.write(offset + done, view[done:])
                    self.bitmaps.mark(offset + done, size)
                    self.limit_dirty()
                    host = -1
            if host >= 0:
                self._write_in_place(host, view[done : done + size])
            done += size

    def _write_in_place(self, host: int, data: Bytes) -> None:
        """Write outside the lock. Precondition: ``in_place`` counts this one."""
        try:
            self.data.write(host, data)
        finally:
            self.in_place.leave()

    def limit_dirty(self) -> None:
        """Write the metadata when much of it waits, the lock held."""
        if self.tables.full:
            self.write_metadata()

    # Zeroes and discards

    def _write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        clearing.write_zeroes(self, offset, size, unmap=unmap)

    def _discard(self, offset: int, size: int) -> None:
        clearing.discard(self, offset, size)

    def clear_behind(self, start: int, stop: int) -> None:
        """Make what lies from the shorter to the longer of two sizes read as zeroes, the image alone."""
        limit = self.header.l1_entries * self.header.l2_entries << self._bits
        self._size = max(start, stop)
        self._write_zeroes(start, min(stop, limit) - start, unmap=True)

    def truncate_data(self, size: int) -> None:
        """Make the external data file as long as the disk."""
        self.data.truncate(size)
        self.data.flush()

    # Compressed clusters

    def write_compressed(self, offset: int, data: Bytes) -> None:
        """Write compressed what makes whole clusters and gets smaller by that; the rest as it is."""
        view = memoryview(data).cast("B")
        self._check_writable(offset, len(view))
        at_end = offset + len(view) == self._size
        whole = not offset & self._in_cluster and (at_end or not len(view) & self._in_cluster)
        if not whole or self.external_data or self.encrypted:
            self.write(offset, view)
            return
        for start in range(0, len(view), self._cluster):
            self._write_compressed_cluster(offset + start, view[start : start + self._cluster])

    def _write_compressed_cluster(self, offset: int, view: memoryview) -> None:
        if not self._packed.write(offset, view):
            self._write(offset, view)

    # Metadata on disk

    def begin_writing(self, *, repair: bool) -> None:
        """Make good what an earlier writer left, and say which features we keep up to date."""
        header = self.header
        if repair and header.incompatible & q.INCOMPATIBLE_DIRTY:
            self.check(repair=True)
        if not repair:
            return
        self.bitmaps.begin_writing()
        self._pass_writes()
        kept = header.autoclear & (q.AUTOCLEAR_DATA_FILE_RAW | q.AUTOCLEAR_BITMAPS)
        if header.autoclear != kept:
            header.autoclear = kept
            self.write_header()

    def _pass_writes(self) -> None:
        """Let writes pass by the tables unless a bitmap has to hear of them."""
        self.in_place.set_writable(not self._readonly and not self.bitmaps.active)

    def barrier(self) -> None:
        """What was written before is stable before what is written after."""
        if self.data is not self.file:
            self.data.flush()
        self.file.flush()

    def _flush(self) -> None:
        with self._lock:
            if self.tables.dirty or self.refcounts.dirty:
                self.write_metadata()
                return
        self.barrier()

    def write_counts(self) -> None:
        """Bring data and new counts to stable storage."""
        self.refcounts.write_blocks()
        self.barrier()
        if self.refcounts.write_table():
            self.barrier()

    def write_metadata(self) -> None:
        """Bring all metadata to stable storage, in the order that the module's docstring gives."""
        data_end = self.allocation.data_end
        if not self.data.size() >= data_end > 0 and not self.external_data:
            self.data.truncate(data_end)
        self.write_counts()
        if self.tables.dirty:
            self.tables.write_l2()
            self.barrier()
            self.tables.l2_written()
        if self.tables.write_l1():
            self.barrier()
            self.tables.l1_dirty.clear()
        if self.refcounts.releases:
            with self._quiet():
                self._free_released()

    def _free_released(self) -> None:
        """Let released clusters be used again, and give their storage back to the host."""
        for first, count in self.refcounts.apply_releases():
            self.allocation.grow(first + count << self._bits)
            self.file.discard(first << self._bits, count << self._bits)
        self._packed.forget()
        self.refcounts.write_blocks()

    def _switch_reftable(self, offset: int, clusters: int) -> None:
        self.barrier()
        self.header.reftable_offset = offset
        self.header.reftable_clusters = clusters
        self.write_header()
        self.reserve_tables()

    def write_header(self) -> None:
        """Write the header's fixed part, one sector and so all or nothing, between two barriers."""
        self.barrier()
        self.file.write(0, self.header.pack_fixed())
        self.barrier()

    def reload(self) -> None:
        """Forget all metadata in memory and read what the header names."""
        self._packed.forget()
        self._size = self.header.size
        self.in_place.resize(self._size)
        self.tables.load(self.header)
        self.refcounts.load(self.header)
        self.snapshot_records = read_snapshots(self.file, self.header)
        self.allocation.measure()
        self.reserve_tables()

    def _close(self) -> None:
        try:
            if self.data is not self.file:
                self.data.close()
            self.file.close()
        finally:
            if self._backing is not None:
                self._backing.close()

    # The rest of the contract

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock while no request is under way: those that begin find no way past it."""
        with self._lock, self._quiet():
            yield

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Wait for what is under way past the lock, and let nothing begin."""
        self.in_place.shut()
        try:
            yield
        finally:
            self.in_place.open()

    def _map(self, offset: int, size: int) -> MapExtent:
        with self._lock:
            kind, count, host = self.mapping.run(offset, size)
        zero = kind in (Kind.ZERO, Kind.UNALLOCATED)
        return MapExtent(
            offset,
            count,
            BlockStatus.ZERO if zero else BlockStatus.DATA,
            present=kind is not Kind.UNALLOCATED,
            host_offset=host if kind is Kind.NORMAL else None,
            file=self.data.path if kind is Kind.NORMAL else None,
            compressed=kind is Kind.COMPRESSED,
        )

    def _stored(self, offset: int, size: int) -> Iterable[Piece]:
        pieces: list[Piece] = []
        with self._lock:
            while size:
                kind, count, host = self.mapping.run(offset, size)
                if kind is Kind.NORMAL:
                    pieces.append(stored_in(self.data, host, count))
                else:
                    pieces.append(Piece(_PLACELESS[kind], 0, count))
                offset, size = offset + count, size - count
        return pieces

    @property
    def can_place(self) -> bool:
        """Without a parent, subclusters or encryption."""
        return self._backing is None and not self.header.extended_l2 and is_plain(self.data)

    def _place(self, offset: int, size: int) -> Iterable[Piece]:
        pieces: list[Piece] = []
        with self._lock:
            self.bitmaps.mark(offset, size)
            while size:
                count, host = self.mapping.in_place(offset, size)
                if not count:
                    count, host = self.allocation.place(offset, size)
                pieces.append(stored_in(self.data, host, count))
                offset, size = offset + count, size - count
            self.limit_dirty()
        return pieces

    def _resize(self, size: int) -> None:
        from sublet.block.qcow2.resize import resize

        with self._alone():
            resize(self, size)
            self.bitmaps.resized(size)
            self._size = self.header.size
            self.in_place.resize(self._size)

    def _check_image(self, *, repair: bool) -> CheckReport:
        from sublet.block.qcow2.check import check

        with self._alone():
            return check(self, repair=repair)

    def snapshots(self) -> tuple[Snapshot, ...]:
        """The internal snapshots, oldest first."""
        return tuple(record.describe(self.header.size) for record in self.snapshot_records)

    def create_snapshot(self, name: str) -> Snapshot:
        """Keep the disk as it is now."""
        from sublet.block.qcow2.snapshots import create

        self._check_writable(0, 0)
        with self._alone():
            return create(self, name)

    def revert_snapshot(self, name: str) -> None:
        """Make the disk what it was then."""
        from sublet.block.qcow2.snapshots import revert

        self._check_writable(0, 0)
        with self._alone():
            revert(self, name)

    def delete_snapshot(self, name: str) -> None:
        """Forget the snapshot and free what only it holds."""
        from sublet.block.qcow2.snapshots import delete

        self._check_writable(0, 0)
        with self._alone():
            delete(self, name)

    def add_bitmap(self, name: str, *, granularity: int = 65536) -> None:
        """Begin to record under a name what is written; ``granularity`` bytes make a bit.

        Raises:
            UsageError: The name or the granularity cannot be.
        """
        self._check_writable(0, 0)
        with self._alone():
            bitmap_store.add(self, name, granularity)
            self._pass_writes()

    def remove_bitmap(self, name: str) -> None:
        """Forget a bitmap."""
        self._check_writable(0, 0)
        with self._alone():
            bitmap_store.remove(self, name)
            self._pass_writes()

    def clear_bitmap(self, name: str) -> None:
        """Begin anew: nothing is dirty."""
        self._check_writable(0, 0)
        with self._alone():
            bits = self.bitmaps.recorded(name)
            bits[:] = bytes(len(bits))

    def bitmap_bits(self, name: str) -> tuple[int, bytes]:
        """Granularity in bytes, and the bits as they are now, of a bitmap that is kept up to date.

        Raises:
            UsageError: There is none, or it is not kept up to date.
        """
        with self._lock:
            return 1 << self.bitmaps.find(name).granularity_bits, bytes(self.bitmaps.recorded(name))

    def merge_bitmap(self, name: str, granularity: int, bits: bytes) -> None:
        """Let what ``bits`` of ``granularity`` bytes say be dirty, too."""
        self._check_writable(0, 0)
        for first, last in bit_runs(bytearray(bits)):
            self.bitmaps.mark_one(name, first * granularity, (last - first) * granularity)

    def dirty_ranges(self, name: str) -> list[tuple[int, int]]:
        """(offset, bytes) of what was written since the bitmap was begun.

        Raises:
            UsageError: There is no such bitmap, or a crash made it worthless.
        """
        self._check(0, 0)
        with self._lock:
            return list(self.bitmaps.dirty(name, self.size))

    def close(self) -> None:
        """Store the bitmaps, flush and close."""
        try:
            if not self._closed and self.bitmaps.active:
                with self._alone():
                    bitmap_store.store(self)
        finally:
            super().close()

    def take_backing(self) -> Image | None:
        """Give the parent away, still open: what it held reads as zeroes here, unless it was copied."""
        with self._lock:
            parent, self._backing = self._backing, None
            return parent

    def make_empty(self) -> None:
        """Let the parent answer for everything again, in one step."""
        from sublet.block.qcow2.rewrite import rewrite

        self._check_writable(0, 0)
        with self._alone():
            if not self.external_data:
                self.write_metadata()
                rewrite(self, array("Q", bytes(len(self.tables.l1) * 8)), self.snapshot_records, self.size)

    def set_backing(self, backing: BackingReference | None) -> None:
        """Name another parent, without looking at what either holds; it is opened the next time."""
        from sublet.block.qcow2.rewrite import write_whole_header

        self._check_writable(0, 0)
        with self._lock:
            self.write_metadata()
            self.header.backing = backing.path if backing else None
            name = backing.format.encode() if backing and backing.format else None
            self.header.set_extension(q.EXTENSION_BACKING_FORMAT, name)
            write_whole_header(self)

    def info(self) -> ImageInfo:
        """What the header says."""
        return describe(self)
