"""Stream-optimized extents: compressed grains, with the tables behind them.

A grain has no fixed size, so it is never changed in place: its new content goes to the end, and so do the
tables that point to it. While the extent is open for writing its header points to the last complete
directory, and one write of the header moves that pointer to the next one; after a crash the extent is what
it was at the last flush. Closing adds the footer and lets the header refer to it, which is what readers of
streams expect: grains in order, tables, directory, footer, end.

Reference: VMware "Virtual Disk Format 5.0", "Stream-Optimized Compressed".
"""

from __future__ import annotations

import threading
import zlib
from array import array
from collections import OrderedDict
from contextlib import AbstractContextManager
from typing import Final

from sublet.block.clusters import UNALLOCATED, ZERO, ReadBelow
from sublet.block.contract import BlockStatus
from sublet.block.description import CheckReport, MapExtent
from sublet.block.entries import EntryPages, decode, encode
from sublet.block.hostfile import HostFile, read_structure
from sublet.block.vmdk.extent import SelfReading
from sublet.block.vmdk.layout import (
    DESCRIPTOR_SECTORS,
    GD_AT_END,
    GTE_UNALLOCATED,
    GTE_ZEROED,
    MAX_GRAIN_DIRECTORY,
    MAX_SECTORS,
    SECTOR,
    Flags,
    HostedHeader,
    Mark,
    Marker,
    align,
    directory_sectors,
    sectors,
    table_sectors,
)
from sublet.errors import CorruptImage, HostRefused, UnsupportedImage, UsageError

_FOOTER_SIZE: Final = 3 * SECTOR
_CACHED_GRAINS: Final = 16
_DIRTY_TABLES_MAXIMUM: Final = 1 << 13
_READ_AHEAD: Final = 4096


class StreamExtent(SelfReading):
    """A compressed hosted extent (``Extent``).

    Args:
        file: The extent's file.
        header: Its header; where that leaves the directory to the footer, the footer's.
        stored: The header as sector 0 has it.
        lock: The image's lock.
        below: Reads what the parent holds of the extent.
    """

    unclean = False

    def __init__(
        self,
        file: HostFile,
        header: HostedHeader,
        stored: HostedHeader,
        *,
        lock: AbstractContextManager[object],
        below: ReadBelow | None,
    ) -> None:
        if not header.flags & Flags.MARKERS:
            raise UnsupportedImage(f"{file.path}: compressed grains without markers")
        self.file = file
        self.size = header.capacity * SECTOR
        self.header = header
        self.below = below
        self._stored = stored
        self.cluster_size = header.grain_size * SECTOR
        self._table_lock = lock
        self._flush_lock = threading.Lock()
        offset = header.gd_offset * SECTOR
        self._directory = decode(read_structure(file, offset, 4 * header.grain_tables, "grain directory"))
        self._pages = EntryPages(file, header.gtes_per_gt)
        self._changed: dict[int, array[int]] = {}
        self._grains: OrderedDict[int, bytes] = OrderedDict()
        self._open_for_writing = False
        self._directory_changed = False
        self._end = align(file.size(), SECTOR)

    # Extent

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view``."""
        while view:
            number, skip = divmod(offset, self.cluster_size)
            length = min(len(view), self.cluster_size - skip)
            self._read_part(number, skip, view[:length])
            view, offset = view[length:], offset + length

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of ``view``; a grain that is written in part is read, changed and compressed anew."""
        while view:
            number, skip = divmod(offset, self.cluster_size)
            length = min(len(view), self.cluster_size - skip)
            with self._table_lock:
                self._write_grain(number, self._merge(number, skip, view[:length]))
            view, offset = view[length:], offset + length
        if len(self._changed) > _DIRTY_TABLES_MAXIMUM:
            self.flush()

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """Make the range zero; whole grains are dropped, which costs nothing."""
        while size:
            number, skip = divmod(offset, self.cluster_size)
            length = min(size, self.cluster_size - skip)
            with self._table_lock:
                self._zero_part(number, skip, length)
            offset, size = offset + length, size - length

    def discard(self, offset: int, size: int) -> None:
        """Nothing: the file only grows."""

    def map(self, offset: int, size: int) -> MapExtent:
        """Grains are compressed, so they have no place of their own in the file."""
        with self._table_lock:
            state, length = self._state_run(offset, size)
        if state == UNALLOCATED:
            return MapExtent(offset, length, BlockStatus.ZERO, present=False)
        if state == ZERO:
            return MapExtent(offset, length, BlockStatus.ZERO)
        return MapExtent(offset, length, BlockStatus.DATA, file=self.file.path, compressed=True)

    def flush(self) -> None:
        """Write tables and a directory behind the grains, then let the header point to it."""
        with self._flush_lock, self._table_lock:
            if not self._directory_changed:
                self.file.flush()
                return
            self._write_tables()
            position = self._write_directory()
            self.file.flush()
            self._store(self._stored.replace(gd_offset=position))
            self._directory_changed = False

    def resize(self, size: int) -> None:
        """Change the capacity: nothing but the directory depends on it."""
        header = self.header.replace(capacity=size // SECTOR)
        if header.grain_tables > MAX_GRAIN_DIRECTORY:
            raise UsageError(f"a VMDK extent of {size} bytes is too large")
        old = self.size
        if size < old:
            self._forget(size, old)
        with self._table_lock:
            self._begin()
            self._directory = self._directory[: header.grain_tables]
            self._directory.extend([0] * (header.grain_tables - len(self._directory)))
            self._stored = self._stored.replace(capacity=header.capacity)
            self.header, self.size = header, size
            self._directory_changed = True
        self._grains.clear()
        if size > old:
            rest = size if self.below is not None else min(size, align(old, self.cluster_size))
            self.write_zeroes(old, rest - old, unmap=True)
        self.flush()

    def check(self, report: CheckReport, *, repair: bool) -> None:
        """Every grain has to be there and to be the one that the table means; none is decompressed."""
        for table, sector in enumerate(self._directory):
            if sector:
                self._check_table(report, table * self.header.gtes_per_gt)

    def finish(self) -> None:
        """Write the footer that makes it a stream again."""
        if not self._open_for_writing:
            return
        footer = self._stored
        self.file.write(self._end, Marker(1, 0, Mark.FOOTER).pack())
        self.file.write(self._end + SECTOR, footer.pack())
        self.file.write(self._end + 2 * SECTOR, Marker(0, 0, Mark.END).pack())
        self.file.truncate(self._end + _FOOTER_SIZE)
        self.file.flush()
        self._store(footer.replace(gd_offset=GD_AT_END))
        self._open_for_writing = False

    # Reading.

    def _check_table(self, report: CheckReport, first: int) -> None:
        end = min(first + self.header.gtes_per_gt, -(-self.size // self.cluster_size))
        for number in range(first, end):
            entry = self._entry(number)
            if self._state(entry) < 0:
                continue
            try:
                self._grain_marker(number, entry)
            except CorruptImage as error:
                report.error(error.message)

    def _read_part(self, number: int, skip: int, view: memoryview) -> None:
        """Part of one grain."""
        with self._table_lock:
            entry = self._entry(number)
            state = self._state(entry)
            data = self._load(number, entry) if state >= 0 else b""
        if data:
            view[:] = data[skip : skip + len(view)]
        elif state == UNALLOCATED and self.below is not None:
            self.below(number * self.cluster_size + skip, view)
        else:
            view[:] = bytes(len(view))

    def _entry(self, number: int) -> int:
        table, within = divmod(number, self.header.gtes_per_gt)
        changed = self._changed.get(table)
        if changed is not None:
            return changed[within]
        sector = self._directory[table]
        return self._pages.page(sector * SECTOR)[within] if sector else GTE_UNALLOCATED

    def _state(self, entry: int) -> int:
        if entry == GTE_UNALLOCATED:
            return UNALLOCATED
        return ZERO if entry == GTE_ZEROED and self.header.has_zeroed_grains else entry

    def _state_run(self, offset: int, size: int) -> tuple[int, int]:
        """The state at ``offset`` (0 for data), and how many bytes share it."""
        number, skip = divmod(offset, self.cluster_size)
        first, length = self._kind(number), 0
        for following in range(number, number + (1 << 16)):
            if length >= size or (following - number and self._kind(following) != first):
                break
            length += self.cluster_size - (skip if following == number else 0)
        return first, min(size, length)

    def _kind(self, number: int) -> int:
        return min(0, self._state(self._entry(number)))

    def _load(self, number: int, entry: int) -> bytes:
        """A grain, decompressed and as long as a grain."""
        cached = self._grains.get(entry)
        if cached is not None:
            return cached
        marker, head = self._grain_marker(number, entry)
        stored = head[Marker.GRAIN_BYTES : Marker.GRAIN_BYTES + marker.size]
        if len(stored) < marker.size:
            at = entry * SECTOR + Marker.GRAIN_BYTES + len(stored)
            stored += self.file.read(at, marker.size - len(stored))
        data = self._inflate(number, stored)
        self._grains[entry] = data
        if len(self._grains) > _CACHED_GRAINS:
            self._grains.popitem(last=False)
        return data

    def _inflate(self, number: int, stored: bytes) -> bytes:
        expander = zlib.decompressobj()
        try:
            data = expander.decompress(stored, self.cluster_size)
        except zlib.error as error:
            raise CorruptImage(f"{self.file.path}: grain {number} does not decompress: {error}") from error
        wanted = min(self.cluster_size, self.size - number * self.cluster_size)
        if len(data) < wanted:
            raise CorruptImage(f"{self.file.path}: grain {number} has {len(data)} bytes, not {wanted}")
        return data.ljust(self.cluster_size, b"\0")

    def _grain_marker(self, number: int, entry: int) -> tuple[Marker, bytes]:
        """The marker in front of a grain, and the first bytes of the file from there on."""
        offset = entry * SECTOR
        size = min(_READ_AHEAD, max(Marker.PARSED_BYTES, self.file.size() - offset))
        head = read_structure(self.file, offset, size, "grain")
        marker = Marker.parse(head)
        if marker.value != number * self.header.grain_size:
            raise CorruptImage(f"{self.file.path}: the grain at sector {entry} is not grain {number}")
        if not 0 < marker.size <= 2 * self.cluster_size:
            raise CorruptImage(f"{self.file.path}: grain {number} has {marker.size} compressed bytes")
        return marker, head

    # Writing. The lock is held.

    def _merge(self, number: int, skip: int, part: memoryview) -> bytes | memoryview:
        """A whole grain, ``part`` of which is new."""
        if len(part) == self.cluster_size:
            return part
        start = number * self.cluster_size
        data = bytearray(self.cluster_size)
        known = min(self.cluster_size, self.size - start)
        if len(part) < known:
            self._read_part(number, 0, memoryview(data)[:known])
        data[skip : skip + len(part)] = part
        return bytes(data)

    def _write_grain(self, number: int, data: bytes | memoryview) -> None:
        self._begin()
        stored = zlib.compress(data)
        packed = Marker(number * self.header.grain_size, len(stored)).pack_grain() + stored
        host = self._append(packed)
        self._set(number, host // SECTOR)

    def _zero_part(self, number: int, skip: int, length: int) -> None:
        start = number * self.cluster_size
        whole = length == min(self.cluster_size, self.size - start)
        state = self._state(self._entry(number))
        if state == ZERO or (state == UNALLOCATED and self.below is None):
            return
        if whole and self.header.has_zeroed_grains:
            self._begin()
            self._set(number, GTE_ZEROED)
        elif whole and self.below is None:
            self._begin()
            self._set(number, GTE_UNALLOCATED)
        else:
            self._write_grain(number, self._merge(number, skip, memoryview(bytes(length))))

    def _forget(self, first: int, end: int) -> None:
        """Drop the grains that lie wholly past byte ``first``."""
        with self._table_lock:
            for number in range(-(-first // self.cluster_size), -(-end // self.cluster_size)):
                if self._entry(number) != GTE_UNALLOCATED:
                    self._begin()
                    self._set(number, GTE_UNALLOCATED)

    def _set(self, number: int, entry: int) -> None:
        table, within = divmod(number, self.header.gtes_per_gt)
        if table not in self._changed:
            sector = self._directory[table]
            empty = array("I", bytes(4 * self.header.gtes_per_gt))
            self._changed[table] = self._pages.page(sector * SECTOR)[:] if sector else empty
        self._changed[table][within] = entry
        self._directory_changed = True

    def _append(self, data: bytes) -> int:
        """Write at the end; byte of the file where ``data`` begins."""
        start = self._end
        if (start + len(data)) // SECTOR > MAX_SECTORS:
            raise HostRefused(f"{self.file.path} has reached the 2 TiB that a VMDK extent can be")
        self.file.write(start, data.ljust(align(len(data), SECTOR), b"\0"))
        self._end = start + align(len(data), SECTOR)
        return start

    def _begin(self) -> None:
        """Before the first change: let the header point to a directory that stays as it is."""
        if self._open_for_writing:
            return
        self._open_for_writing = True
        at = self.header.gd_offset
        if self._spare_directory() and not any(self._directory):
            at, self._end = 1 + DESCRIPTOR_SECTORS, self._stored.overhead * SECTOR
        elif self._stored.gd_offset == GD_AT_END:
            self._end = max(self._stored.overhead * SECTOR, self._end - _FOOTER_SIZE)
        flags = self._stored.flags & ~Flags.REDUNDANT_TABLES
        self._store(self._stored.replace(gd_offset=at, flags=flags, redundant_gd_offset=0))

    def _spare_directory(self) -> bool:
        """Whether there is an empty directory between descriptor and grains, as in extents that we made."""
        start, size = 1 + DESCRIPTOR_SECTORS, directory_sectors(self.header)
        if self._stored.descriptor_offset != 1 or start + size > self._stored.overhead:
            return False
        return not any(self.file.read(start * SECTOR, size * SECTOR))

    def _write_tables(self) -> None:
        size = table_sectors(self.header)
        for number in sorted(self._changed):
            table = self._changed[number]
            marker = Marker(size, 0, Mark.GRAIN_TABLE).pack()
            self._directory[number] = self._append(marker + encode(table)) // SECTOR + 1 if any(table) else 0
        self._changed = {}

    def _write_directory(self) -> int:
        """Sector of the directory."""
        marker = Marker(directory_sectors(self.header), 0, Mark.GRAIN_DIRECTORY).pack()
        return self._append(marker + encode(self._directory)) // SECTOR + 1

    def _store(self, header: HostedHeader) -> None:
        """Write the header, alone between two barriers."""
        self._stored = header
        self.file.write(0, header.pack())
        self.file.flush()


def read_footer(file: HostFile, header: HostedHeader) -> HostedHeader:
    """The header that counts: the footer's, where the one at the start leaves the directory to it.

    Raises:
        CorruptImage: There is no footer at the end.
    """
    if header.gd_offset != GD_AT_END:
        return header
    size = file.size()
    tail = read_structure(file, size - _FOOTER_SIZE, _FOOTER_SIZE, "footer")
    before, after = Marker.parse(tail), Marker.parse(tail[2 * SECTOR :])
    if (before.size, before.mark) != (0, Mark.FOOTER) or after != Marker(0, 0, Mark.END):
        raise CorruptImage(f"{file.path}: there is no footer at the end; the stream was cut")
    footer = HostedHeader.parse(tail[SECTOR:], str(file.path))
    if footer.gd_offset == GD_AT_END:
        raise CorruptImage(f"{file.path}: the footer does not say where the grain directory is")
    return footer


def write_stream(file: HostFile, header: HostedHeader, descriptor: bytes) -> None:
    """Write an empty stream. The header comes last, behind a barrier."""
    room = 1 + DESCRIPTOR_SECTORS + directory_sectors(header)
    header = header.replace(overhead=align(room, header.overhead))
    start, size = header.overhead, directory_sectors(header)
    file.write(SECTOR, descriptor)
    file.write(start * SECTOR, Marker(size, 0, Mark.GRAIN_DIRECTORY).pack())
    end = start + 1 + size
    file.write(end * SECTOR, Marker(1, 0, Mark.FOOTER).pack())
    file.write((end + 1) * SECTOR, header.replace(gd_offset=start + 1).pack())
    file.write((end + 2) * SECTOR, Marker(0, 0, Mark.END).pack())
    file.flush()
    file.write(0, header.pack())
    file.flush()


def descriptor_area(data: bytes, size: int) -> bytes:
    """A descriptor, filled up to ``size`` sectors.

    Raises:
        UsageError: It does not fit; the file's name is too long.
    """
    if sectors(len(data) + 1) > size:
        raise UsageError(f"a descriptor of {len(data)} bytes does not fit into {size} sectors")
    return data.ljust(size * SECTOR, b"\0")
