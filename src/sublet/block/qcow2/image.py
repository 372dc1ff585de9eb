"""An open QCOW2 image: from block numbers to clusters of the file, and back to nothing.

Order of writes. Data and new counts come first, then the L2 entries that refer to them, then the L1 entries
that refer to new L2 tables, with a barrier between each; last, counts of clusters that nothing refers to any
more go down (``write_metadata``). All of it waits in memory until ``flush``, so a crash at any point leaves
what the last flush made, and leaks at most.

Threads. ``_lock`` guards all metadata. Data moves outside it where it stays in place: a released cluster is
not reused before the writes that were under way have ended, and reads of a cluster that is released meanwhile
see old or new data, as the guest's own race decides.

Reference: "QCOW2 image format" (QEMU 7.2, docs/interop/qcow2.txt).
"""

from __future__ import annotations

import enum
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from sublet.block.contract import BlockStatus
from sublet.block.format import (
    BackingReference,
    CheckReport,
    Image,
    ImageInfo,
    Json,
    MapExtent,
    Snapshot,
    read_parent,
)
from sublet.block.hostfile import Bytes, HostFile, descriptor
from sublet.block.pieces import OTHER, PARENT, ZERO, Piece, is_plain, stored_in
from sublet.block.qcow2 import bitmap_store
from sublet.block.qcow2 import layout as q
from sublet.block.qcow2.bitmaps import IN_USE, Bitmaps, bit_runs
from sublet.block.qcow2.compression import compress, decompress
from sublet.block.qcow2.refcounts import Refcounts
from sublet.block.qcow2.snapshots import read_snapshots
from sublet.block.qcow2.tables import L2Table, Tables
from sublet.core import InPlace
from sublet.errors import CorruptImage, UsageError

_PLAIN_MAXIMUM: Final = 8
"""Decompressed clusters that are kept."""


class Kind(enum.IntEnum):
    """How a range is stored."""

    NORMAL = 0
    ZERO = 1
    UNALLOCATED = 2
    COMPRESSED = 3


_PLACELESS: Final = {Kind.ZERO: ZERO, Kind.UNALLOCATED: PARENT, Kind.COMPRESSED: OTHER}

Run = tuple[Kind, int, int]
"""(kind, bytes, host offset; the L2 entry for COMPRESSED)."""


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
        self._data = data or file
        self._backing = backing
        self._encrypted = header.crypt_method != q.CRYPT_NONE
        self._bits = header.cluster_bits
        self._cluster = header.cluster_size
        self._in_cluster = header.cluster_size - 1
        self._l2_entries = header.l2_entries
        self._plain: OrderedDict[int, bytes] = OrderedDict()
        self._compressed_next = 0
        self._compressed_end = 0
        shape = (header.size, header.cluster_bits, header.extended_l2)
        self.in_place: InPlace = InPlace.clusters(descriptor(self._data), *shape, not readonly)
        self.tables = Tables(file, header, self.in_place)
        self.refcounts = Refcounts(file, header, self._switch_reftable)
        self.snapshot_records = read_snapshots(file, header)
        self._data_end = -(-self._data.size() // self._cluster) * self._cluster
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

    # Reading

    def _readinto(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            with self._lock:
                kind, size, host = self._run(offset + done, len(view) - done)
            self._read_run(kind, host, offset + done, view[done : done + size])
            done += size

    def _read_run(self, kind: Kind, host: int, offset: int, view: memoryview) -> None:
        if kind is Kind.NORMAL:
            self._data.readinto(host, view)
        elif kind is Kind.ZERO:
            view[:] = bytes(len(view))
        elif kind is Kind.UNALLOCATED:
            read_parent(self._backing, offset, view)
        else:
            inside = offset & self._in_cluster
            view[:] = self._decompressed(host)[inside : inside + len(view)]

    def _decompressed(self, entry: int) -> bytes:
        with self._lock:
            plain = self._plain.get(entry)
            if plain is not None:
                self._plain.move_to_end(entry)
                return plain
            offset, size = q.compressed_range(entry, self._bits)
            packed = self.file.read(offset, size)
        plain = decompress(packed, self._cluster, self.header.compression)
        with self._lock:
            self._plain[entry] = plain
            while len(self._plain) > _PLAIN_MAXIMUM:
                self._plain.popitem(last=False)
        return plain

    # Finding

    def _run(self, offset: int, limit: int) -> Run:
        """How the bytes from ``offset`` are stored, as far as they are so alike, up to ``limit``."""
        l1_index, index = divmod(offset >> self._bits, self._l2_entries)
        table = self.tables.l2(l1_index)
        inside = offset & self._in_cluster
        if table is None:
            span = ((self._l2_entries - index) << self._bits) - inside
            return Kind.UNALLOCATED, min(limit, span), 0
        if self.header.extended_l2:
            return self._subcluster_run(table, index, inside, limit)
        kind, host = self._classify(table.entries[index])
        size = self._cluster - inside
        if kind is Kind.COMPRESSED:
            return kind, min(limit, size), host
        clusters = self._count_alike(table, index, kind, host, (limit - size >> self._bits) + 1)
        return kind, min(limit, size + (clusters << self._bits)), host + inside

    def _count_alike(self, table: L2Table, index: int, kind: Kind, host: int, limit: int) -> int:
        """Clusters after ``index``, up to ``limit``, that go on with the same kind at the next place."""
        entries = table.entries
        end = min(self._l2_entries, index + 1 + max(0, limit))
        position = index + 1
        if kind is Kind.NORMAL and not self.external_data:
            step, flags = self._cluster, entries[index]
            while position < end and entries[position] == flags + step:
                flags += step
                position += 1
            return position - index - 1
        while position < end:
            host += self._cluster
            found, place = self._classify(entries[position])
            if found is not kind or (kind is Kind.NORMAL and place != host):
                break
            position += 1
        return position - index - 1

    def _classify(self, entry: int) -> tuple[Kind, int]:
        """Kind and host offset of a standard L2 entry.

        Raises:
            CorruptImage: The entry names no cluster.
        """
        if entry & q.COMPRESSED:
            return Kind.COMPRESSED, entry & ~q.COPIED
        host = entry & q.OFFSET_MASK
        if host & self._in_cluster:
            raise CorruptImage(f"{self.path}: L2 entry {entry:#x} is not at a cluster")
        if entry & q.ZERO and self.header.version >= 3 and not self.header.extended_l2:
            return Kind.ZERO, host
        if not host and not (self.external_data and entry & q.COPIED):
            return Kind.UNALLOCATED, 0
        return Kind.NORMAL, host

    def _subcluster_run(self, table: L2Table, index: int, inside: int, limit: int) -> Run:
        """As ``_run``, of extended entries: within one cluster, or over whole clusters that are alike."""
        entry, bitmap = table.entries[2 * index], table.entries[2 * index + 1]
        kind, host = self._classify(entry)
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
            raise CorruptImage(f"{self.path}: L2 entry {entry:#x} has the invalid bitmap {bitmap:#x}")

    # Writing

    def _write(self, offset: int, view: memoryview) -> None:
        self.bitmaps.mark(offset, len(view))
        done = 0
        while done < len(view):
            with self._lock:
                size, host = self._in_place(offset + done, len(view) - done)
                if size:
                    self.in_place.enter()
                else:
                    size = self._write_new(offset + done, view[done:])
                    self._limit_dirty()
                    host = -1
            if host >= 0:
                self._write_in_place(host, view[done : done + size])
            done += size

    def _write_in_place(self, host: int, data: Bytes) -> None:
        """Write outside the lock. Precondition: ``in_place`` counts this one."""
        try:
            self._data.write(host, data)
        finally:
            self.in_place.leave()

    def _limit_dirty(self) -> None:
        if self.tables.full:
            self.write_metadata()

    def _in_place(self, offset: int, limit: int) -> tuple[int, int]:
        """(bytes, host offset) that can be overwritten where they are; (0, 0) for none."""
        l1_index, index = divmod(offset >> self._bits, self._l2_entries)
        table = self.tables.l2(l1_index)
        if table is None or not self.tables.l1[l1_index] & q.COPIED:
            return 0, 0
        entry = table.entries[index * (2 if self.header.extended_l2 else 1)]
        if not entry & q.COPIED:
            return 0, 0
        kind, size, host = self._run(offset, limit)
        return (size, host) if kind is Kind.NORMAL else (0, 0)

    def _write_new(self, offset: int, view: memoryview) -> int:
        """Write the first bytes of ``view`` to where nothing can be overwritten; returns how many."""
        l1_index, index = divmod(offset >> self._bits, self._l2_entries)
        table = self._own_l2(l1_index)
        inside = offset & self._in_cluster
        if self.header.extended_l2:
            size = min(len(view), self._cluster - inside)
            self._write_subclusters(table, index, offset, view[:size])
            return size
        wanted = (inside + len(view) + self._in_cluster) >> self._bits
        wanted = self._count_new(table, index, wanted)
        host, count = self._allocate_data(offset & ~self._in_cluster, wanted)
        size = min(len(view), (count << self._bits) - inside)
        self._fill_new(offset, view[:size], host, count)
        self._point_to(table, index, host, count)
        return size

    def _point_to(self, table: L2Table, index: int, host: int, count: int) -> None:
        """Point L2 entries to ``count`` clusters of this image alone, side by side from ``host`` on."""
        start = host | q.COPIED
        new = array("Q", range(start, start + (count << self._bits), self._cluster))
        self._set_entries(table, index, new)

    def _count_new(self, table: L2Table, index: int, limit: int) -> int:
        """Clusters from ``index``, up to ``limit``, that cannot be overwritten where they are."""
        end = min(self._l2_entries, index + limit)
        position = index + 1
        while position < end:
            entry = table.entries[position]
            if entry & q.COPIED and not entry & q.COMPRESSED and self._classify(entry)[0] is Kind.NORMAL:
                break
            position += 1
        return position - index

    def _allocate_data(self, guest: int, count: int) -> tuple[int, int]:
        """(host offset, clusters) for the clusters from guest offset ``guest``."""
        if self.external_data:
            return guest, count
        first, count = self.refcounts.allocate(count)
        return first << self._bits, count

    def _fill_new(self, offset: int, view: memoryview, host: int, count: int) -> None:
        """Write new clusters: ``view`` at ``offset``, and around it what the disk has held there."""
        inside = offset & self._in_cluster
        total = count << self._bits
        # Clusters behind the file's end read as zeroes already.
        fresh = host >= self._data_end and not self._encrypted
        head = self._old_content(offset - inside, inside, skip_zeroes=fresh)
        tail = self._old_content(offset + len(view), total - inside - len(view), skip_zeroes=fresh)
        data = b"".join((head, view, tail)) if head or tail else view
        self._data.write(host + inside - len(head), data)
        self._data_end = max(self._data_end, host + total)

    def _old_content(self, offset: int, size: int, *, skip_zeroes: bool) -> bytes:
        """What the disk holds, zeroes past its end; nothing for zeroes alone if they can be skipped."""
        inside = max(0, min(size, self._size - offset))
        if not inside or self._reads_zero(offset, inside):
            return b"" if skip_zeroes else bytes(size)
        buffer = bytearray(size)
        self._readinto(offset, memoryview(buffer)[:inside])
        return bytes(buffer)

    def _reads_zero(self, offset: int, size: int) -> bool:
        """Whether the tables alone say that the range is zero."""
        while size:
            kind, count, _ = self._run(offset, size)
            below = kind is Kind.UNALLOCATED and (self._backing is None or offset >= self._backing.size)
            if kind is not Kind.ZERO and not below:
                return False
            offset += count
            size -= count
        return True

    def _write_subclusters(self, table: L2Table, index: int, offset: int, view: memoryview) -> None:
        """``_write_new`` with extended L2 entries, within one cluster."""
        entry, bitmap = table.entries[2 * index], table.entries[2 * index + 1]
        kind, host = self._classify(entry)
        start = offset & ~self._in_cluster
        if kind is Kind.COMPRESSED or (kind is Kind.NORMAL and not entry & q.COPIED):
            place, _ = self._allocate_data(start, 1)
            self._fill_new(offset, view, place, 1)
            self._set_extended(table, index, place | q.COPIED, q.ALL_ALLOCATED)
            return
        fresh = kind is Kind.UNALLOCATED
        if fresh:
            host, _ = self._allocate_data(start, 1)
        fresh = fresh and host >= self._data_end and not self._encrypted
        inside = offset & self._in_cluster
        sub_size = self._cluster // q.SUBCLUSTERS
        first, last = inside // sub_size, (inside + len(view) - 1) // sub_size
        head_size = 0 if bitmap >> first & 1 else inside - first * sub_size
        tail_size = 0 if bitmap >> last & 1 else (last + 1) * sub_size - inside - len(view)
        head = self._old_content(offset - head_size, head_size, skip_zeroes=fresh)
        tail = self._old_content(offset + len(view), tail_size, skip_zeroes=fresh)
        self._data.write(host + inside - len(head), b"".join((head, view, tail)))
        self._data_end = max(self._data_end, host + self._cluster)
        touched = (1 << last + 1) - (1 << first)
        self._set_extended(table, index, host | q.COPIED, (bitmap | touched) & ~(touched << 32))

    def _set_extended(self, table: L2Table, index: int, entry: int, bitmap: int) -> None:
        """Change an extended L2 entry and release what the old one held alone."""
        old = table.entries[2 * index]
        self.tables.change(table, 2 * index, array("Q", (entry, bitmap)))
        if old & q.OFFSET_MASK != entry & q.OFFSET_MASK or old & q.COMPRESSED:
            self._release(old)

    def _set_entries(self, table: L2Table, index: int, new: array[int]) -> None:
        """Change standard L2 entries and release what the old ones held alone."""
        old = table.entries[index : index + len(new)]
        self.tables.change(table, index, new)
        for before, after in zip(old, new, strict=True):
            if before and (before & q.COMPRESSED or before & q.OFFSET_MASK != after & q.OFFSET_MASK):
                self._release(before)

    def _release(self, entry: int) -> None:
        """Give up the clusters of an old L2 entry."""
        if entry & q.COMPRESSED:
            offset, size = q.compressed_range(entry, self._bits)
            first = offset >> self._bits
            self.refcounts.release(first, (offset + size - 1 >> self._bits) - first + 1)
        elif entry & q.OFFSET_MASK and not self.external_data:
            self.refcounts.release((entry & q.OFFSET_MASK) >> self._bits)

    def _own_l2(self, l1_index: int) -> L2Table:
        """The L2 table of that L1 entry, for writing: new where there is none or it is shared."""
        entry = self.tables.l1[l1_index]
        table = self.tables.l2(l1_index)
        if table is not None and entry & q.COPIED:
            return table
        first, _ = self.refcounts.allocate(1)
        if table is not None:
            self.refcounts.release(table.offset >> self._bits)
        return self.tables.replace_l2(l1_index, first << self._bits, table.entries if table else None)

    # Zeroes and discards

    def _write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        self.bitmaps.mark(offset, size)
        end = offset + size
        start = -(-offset // self._cluster) * self._cluster
        stop = end if end == self._size else end & ~self._in_cluster
        if start >= stop:
            self._zero_bytes(offset, end)
            return
        self._zero_bytes(offset, start)
        self._clear(start, stop, unmap=unmap, reads_zero=True)
        self._zero_bytes(stop, end)

    def _zero_bytes(self, offset: int, end: int) -> None:
        """Write zeroes as data, where there are none yet."""
        while offset < end:
            with self._lock:
                size = min(end - offset, self._cluster - (offset & self._in_cluster))
                zero = self._reads_zero(offset, size)
            if not zero:
                self._write(offset, memoryview(bytes(size)))
            offset += size

    def _discard(self, offset: int, size: int) -> None:
        self.bitmaps.mark(offset, size)
        end = offset + size
        start = -(-offset // self._cluster) * self._cluster
        stop = end if end == self._size else end & ~self._in_cluster
        # Without zero clusters (version 2) an older state of the parent would come back.
        if start < stop and (self._backing is None or self.header.version >= 3):
            self._clear(start, stop, unmap=True, reads_zero=self._backing is not None)

    def _clear(self, start: int, stop: int, *, unmap: bool, reads_zero: bool) -> None:
        """Make whole clusters zero (``reads_zero``) or unallocated; the last may pass the disk's end."""
        first, last = start >> self._bits, stop + self._in_cluster >> self._bits
        while first < last:
            with self._lock:
                l1_index, index = divmod(first, self._l2_entries)
                count = min(last - first, self._l2_entries - index)
                self._clear_table(l1_index, index, count, unmap=unmap, reads_zero=reads_zero)
                self._limit_dirty()
            first += count

    def _clear_table(self, l1_index: int, index: int, count: int, *, unmap: bool, reads_zero: bool) -> None:
        if self.tables.l2(l1_index) is None and (self._backing is None or not reads_zero):
            return
        guest = l1_index * self._l2_entries + index << self._bits
        if self.external_data:
            self._data.write_zeroes(guest, min(count << self._bits, self._size - guest), unmap=unmap)
        elif self.header.version < 3 and reads_zero and self._backing is not None:
            self._zero_bytes(guest, min(self._size, guest + (count << self._bits)))
            return
        table = self._own_l2(l1_index)
        if self.header.extended_l2:
            self._clear_extended(table, index, count, guest, unmap=unmap, reads_zero=reads_zero)
            return
        zero = q.ZERO if reads_zero and self.header.version >= 3 else 0
        keep = bool(zero) and (not unmap or self.external_data)
        old = table.entries[index : index + count]
        new = array("Q", (self._cleared(entry, zero, keep) for entry in old))
        if new != old:
            self._set_entries(table, index, new)

    def _cleared(self, entry: int, zero: int, keep: bool) -> int:
        if not entry and self._backing is None:
            return 0
        if keep and entry & q.COPIED and not entry & q.COMPRESSED:
            return entry | zero
        return zero

    def _clear_extended(
        self, table: L2Table, index: int, count: int, guest: int, *, unmap: bool, reads_zero: bool
    ) -> None:
        bitmap = q.ALL_ZERO if reads_zero else 0
        for position in range(index, index + count):
            entry = table.entries[2 * position]
            keep = entry if (not unmap or self.external_data) and entry & q.COPIED else 0
            keep = 0 if entry & q.COMPRESSED else keep
            if (entry, table.entries[2 * position + 1]) != (keep, bitmap):
                self._set_extended(table, position, keep, bitmap)

    def clear_behind(self, start: int, stop: int) -> None:
        """Make what lies from the shorter to the longer of two sizes read as zeroes, the image alone."""
        limit = self.header.l1_entries * self._l2_entries << self._bits
        self._size = max(start, stop)
        self._write_zeroes(start, min(stop, limit) - start, unmap=True)

    def truncate_data(self, size: int) -> None:
        """Make the external data file as long as the disk."""
        self._data.truncate(size)
        self._data.flush()

    # Compressed clusters

    def write_compressed(self, offset: int, data: Bytes) -> None:
        """Write compressed what makes whole clusters and gets smaller by that; the rest as it is."""
        view = memoryview(data).cast("B")
        self._check_writable(offset, len(view))
        at_end = offset + len(view) == self._size
        whole = not offset & self._in_cluster and (at_end or not len(view) & self._in_cluster)
        if not whole or self.external_data or self._encrypted:
            self.write(offset, view)
            return
        for start in range(0, len(view), self._cluster):
            self._write_compressed_cluster(offset + start, view[start : start + self._cluster])

    def _write_compressed_cluster(self, offset: int, view: memoryview) -> None:
        padded = view if len(view) == self._cluster else bytes(view).ljust(self._cluster, b"\0")
        packed = compress(padded, self.header.compression)
        if len(packed) >= self._cluster:
            self._write(offset, view)
            return
        self.bitmaps.mark(offset, len(view))
        l1_index, index = divmod(offset >> self._bits, self._l2_entries)
        with self._lock:
            table = self._own_l2(l1_index)
            host = self._allocate_packed(len(packed))
            self.file.write(host, packed)
            self._data_end = max(self._data_end, host + len(packed) + self._in_cluster & ~self._in_cluster)
            entry = q.compressed_entry(host, len(packed), self._bits)
            if self.header.extended_l2:
                self._set_extended(table, index, entry, 0)
            else:
                self._set_entries(table, index, array("Q", (entry,)))
            self._limit_dirty()

    def _allocate_packed(self, size: int) -> int:
        """Offset for ``size`` bytes, fewer than a cluster; each cluster that they touch is counted once."""
        begun = self._compressed_next >> self._bits
        shared = self._compressed_next < self._compressed_end
        shared = shared and self.refcounts.get(begun) < self.refcounts.maximum
        if shared and self._compressed_next + size <= self._compressed_end:
            host = self._compressed_next
            self.refcounts.increment(begun)
        else:
            first, _ = self.refcounts.allocate(1)
            if shared and first << self._bits == self._compressed_end:
                host = self._compressed_next
                self.refcounts.increment(begun)
            else:
                host = first << self._bits
            self._compressed_end = first + 1 << self._bits
        self._compressed_next = host + size
        return host

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

    def _barrier(self) -> None:
        """What was written before is stable before what is written after."""
        if self._data is not self.file:
            self._data.flush()
        self.file.flush()

    def _flush(self) -> None:
        with self._lock:
            if self.tables.dirty or self.refcounts.dirty:
                self.write_metadata()
                return
        self._barrier()

    def write_counts(self) -> None:
        """Bring data and new counts to stable storage."""
        self.refcounts.write_blocks()
        self._barrier()
        if self.refcounts.write_table():
            self._barrier()

    def write_metadata(self) -> None:
        """Bring all metadata to stable storage, in the order that the module's docstring gives."""
        if not self._data.size() >= self._data_end > 0 and not self.external_data:
            self._data.truncate(self._data_end)
        self.write_counts()
        if self.tables.dirty:
            self.tables.write_l2()
            self._barrier()
            self.tables.l2_written()
        if self.tables.write_l1():
            self._barrier()
            self.tables.l1_dirty.clear()
        if not self.in_place.busy:
            self._free_released()

    def _free_released(self) -> None:
        """Let released clusters be used again, and give their storage back to the host."""
        for first, count in self.refcounts.apply_releases():
            self._data_end = max(self._data_end, first + count << self._bits)
            self._compressed_next = self._compressed_end = 0
            self.file.discard(first << self._bits, count << self._bits)
        self._plain.clear()
        self.refcounts.write_blocks()

    def _switch_reftable(self, offset: int, clusters: int) -> None:
        self._barrier()
        self.header.reftable_offset = offset
        self.header.reftable_clusters = clusters
        self.write_header()
        self.reserve_tables()

    def write_header(self) -> None:
        """Write the header's fixed part, one sector and so all or nothing, between two barriers."""
        self._barrier()
        self.file.write(0, self.header.pack_fixed())
        self._barrier()

    def reload(self) -> None:
        """Forget all metadata in memory and read what the header names."""
        self._plain.clear()
        self._compressed_next = self._compressed_end = 0
        self._size = self.header.size
        self.in_place.resize(self._size)
        self.tables.load(self.header)
        self.refcounts.load(self.header)
        self.snapshot_records = read_snapshots(self.file, self.header)
        self._data_end = -(-self._data.size() // self._cluster) * self._cluster
        self.reserve_tables()

    def _close(self) -> None:
        try:
            if self._data is not self.file:
                self._data.close()
            self.file.close()
        finally:
            if self._backing is not None:
                self._backing.close()

    # The rest of the contract

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock while no request is under way: those that begin find no way past it."""
        with self._lock:
            self.in_place.shut()
            try:
                yield
            finally:
                self.in_place.open()

    def _map(self, offset: int, size: int) -> MapExtent:
        with self._lock:
            kind, count, host = self._run(offset, size)
        zero = kind in (Kind.ZERO, Kind.UNALLOCATED)
        return MapExtent(
            offset,
            count,
            BlockStatus.ZERO if zero else BlockStatus.DATA,
            present=kind is not Kind.UNALLOCATED,
            host_offset=host if kind is Kind.NORMAL else None,
            file=self._data.path if kind is Kind.NORMAL else None,
            compressed=kind is Kind.COMPRESSED,
        )

    def _stored(self, offset: int, size: int) -> Iterable[Piece]:
        pieces: list[Piece] = []
        with self._lock:
            while size:
                kind, count, host = self._run(offset, size)
                if kind is Kind.NORMAL:
                    pieces.append(stored_in(self._data, host, count))
                else:
                    pieces.append(Piece(_PLACELESS[kind], 0, count))
                offset, size = offset + count, size - count
        return pieces

    @property
    def can_place(self) -> bool:
        """Without a parent, subclusters or encryption."""
        return self._backing is None and not self.header.extended_l2 and is_plain(self._data)

    def _place(self, offset: int, size: int) -> Iterable[Piece]:
        self.bitmaps.mark(offset, size)
        pieces: list[Piece] = []
        with self._lock:
            while size:
                count, host = self._in_place(offset, size)
                if not count:
                    count, host = self._place_new(offset, size)
                pieces.append(stored_in(self._data, host, count))
                offset, size = offset + count, size - count
            self._limit_dirty()
        return pieces

    def _place_new(self, offset: int, size: int) -> tuple[int, int]:
        """New clusters for the first bytes of a range of zeroes: their number, and where they are."""
        l1_index, index = divmod(offset >> self._bits, self._l2_entries)
        table = self._own_l2(l1_index)
        inside = offset & self._in_cluster
        wanted = self._count_new(table, index, (inside + size + self._in_cluster) >> self._bits)
        host, count = self._allocate_data(offset & ~self._in_cluster, wanted)
        if host < self._data_end and not self.external_data:
            self._data.write_zeroes(host, min(count << self._bits, self._data_end - host))
        self._data_end = max(self._data_end, host + (count << self._bits))
        self._point_to(table, index, host, count)
        return min(size, (count << self._bits) - inside), host + inside

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
            bits = self.bitmaps.bits.get(self.bitmaps.find(name).name)
            if bits is None:
                raise UsageError(f"the bitmap {name!r} was not closed cleanly or is disabled: make another")
            bits[:] = bytes(len(bits))

    def bitmap_bits(self, name: str) -> tuple[int, bytes]:
        """Granularity in bytes, and the bits as they are now, of a bitmap that is kept up to date.

        Raises:
            UsageError: There is none, or it is not kept up to date.
        """
        bitmap = self.bitmaps.find(name)
        with self._lock:
            bits = self.bitmaps.bits.get(bitmap.name)
            if bits is None:
                raise UsageError(f"the bitmap {name!r} was not closed cleanly or is disabled: make another")
            return 1 << bitmap.granularity_bits, bytes(bits)

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
            bitmap = self.bitmaps.find(name)
            if bitmap.flags & IN_USE and name not in self.bitmaps.bits:
                raise UsageError(f"the bitmap {name!r} was not closed cleanly: make a full backup")
            return list(self.bitmaps.dirty(bitmap, self.size))

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
        self._check_writable(0, 0)
        with self._lock:
            self.write_metadata()
            self.header.backing = backing.path if backing else None
            name = backing.format.encode() if backing and backing.format else None
            self.header.set_extension(q.EXTENSION_BACKING_FORMAT, name)
            self.write_whole_header()

    def write_whole_header(self) -> None:
        """Write the header with extensions and the parent's name.

        The name may lie in a later sector, so it goes first, to where the old one is not.
        """
        packed = self.header.pack()
        self._barrier()
        if len(packed) > 512:
            self.file.write(512, packed[512:])
            self._barrier()
        self.file.write(0, packed[:512])
        self._barrier()

    def info(self) -> ImageInfo:
        """What the header says."""
        header = self.header
        format_name = header.extension(q.EXTENSION_BACKING_FORMAT)
        reference = None
        if header.backing is not None:
            reference = BackingReference(
                header.backing, format_name.decode("utf-8", "replace") if format_name else None
            )
        data_file = header.extension(q.EXTENSION_DATA_FILE)
        details: dict[str, Json] = {
            "compat": "0.10" if header.version == 2 else "1.1",
            "compression_type": "zstd" if header.compression else "zlib",
            "lazy_refcounts": bool(header.compatible & q.COMPATIBLE_LAZY_REFCOUNTS),
            "refcount_bits": 1 << header.refcount_order,
            "corrupt": bool(header.incompatible & q.INCOMPATIBLE_CORRUPT),
            "extended_l2": header.extended_l2,
            "data_file": data_file.decode("utf-8", "replace") if data_file else None,
            "bitmaps": [bitmap.describe() for bitmap in self.bitmaps.all],
        }
        return ImageInfo(
            self.format,
            self.path,
            self.size,
            self.file.size(),
            self.file.allocated() + (self._data.allocated() if self._data is not self.file else 0),
            cluster_size=self._cluster,
            backing=reference,
            snapshots=self.snapshots(),
            dirty=bool(header.incompatible & q.INCOMPATIBLE_DIRTY),
            encrypted=header.crypt_method != q.CRYPT_NONE,
            details=details,
        )


def _subcluster_kind(bitmap: int, number: int) -> Kind:
    if bitmap >> number & 1:
        return Kind.NORMAL
    return Kind.ZERO if bitmap >> (32 + number) & 1 else Kind.UNALLOCATED
