"""What the tables of a QCOW2 image refer to: the true reference counts, found by walking all of it.

Reference: "QCOW2 image format" (QEMU 7.2), § "Host cluster management".
"""

from __future__ import annotations

from array import array
from typing import Final

from sublet.block.description import CheckReport
from sublet.block.hostfile import HostFile, read_structure
from sublet.block.qcow2 import layout as q
from sublet.block.qcow2.snapshots import SnapshotRecord
from sublet.errors import CorruptImage, UnsupportedImage

_CHUNK: Final = 4096
"""Clusters that are counted together."""
_CHUNKS_MAXIMUM: Final = 65536
"""512 MiB of counts: 16 TiB of clusters of 64 KiB, less where a hostile image scatters them."""
_SATURATED: Final = 0xFFFF


class References:
    """Counts by cluster of the file, and a report of references that cannot be."""

    def __init__(self, file: HostFile, header: q.Header, report: CheckReport) -> None:
        self._file = file
        self._header = header
        self._report = report
        self._bits = header.cluster_bits
        self._end = -(-file.size() // header.cluster_size)
        self._chunks: dict[int, array[int]] = {}

    def extend(self, clusters: int) -> None:
        """Take the file to be ``clusters`` long."""
        self._end = max(self._end, clusters)

    def get(self, cluster: int) -> int:
        """Count of a cluster, at most 65535."""
        chunk = self._chunks.get(cluster // _CHUNK)
        return chunk[cluster % _CHUNK] if chunk else 0

    def used(self) -> list[int]:
        """Numbers of the chunks that count something, each of ``chunk_size`` clusters, in order."""
        return sorted(self._chunks)

    chunk_size = _CHUNK

    def counts(self, start: int, count: int) -> array[int]:
        """Counts of ``count`` clusters from ``start``."""
        result = array("H")
        while count:
            number, inside = divmod(start, _CHUNK)
            step = min(count, _CHUNK - inside)
            chunk = self._chunks.get(number)
            result.extend(chunk[inside : inside + step] if chunk else array("H", bytes(2 * step)))
            start += step
            count -= step
        return result

    def drop(self, cluster: int) -> None:
        """Take one reference away."""
        self._chunks[cluster // _CHUNK][cluster % _CHUNK] -= 1

    def add(self, offset: int, size: int, what: str) -> bool:
        """Count ``size`` bytes at ``offset``; whether they lie in the file at a cluster."""
        if offset % self._header.cluster_size:
            self._report.error(f"the {what} is at {offset:#x}, not at a cluster")
            return False
        first = offset >> self._bits
        return self.add_clusters(first, (offset + size - 1 >> self._bits) - first + 1, what)

    def add_clusters(self, first: int, count: int, what: str) -> bool:
        """Count those of ``count`` clusters from ``first`` that lie in the file; whether all do."""
        whole = first + count <= self._end
        if not whole:
            count = max(0, self._end - first)
            self._report.error(f"the {what} at {first + count << self._bits:#x} lies outside the file")
        while count > 0:
            number, inside = divmod(first, _CHUNK)
            step = min(count, _CHUNK - inside)
            self._add_in_chunk(self._chunk(number), inside, step)
            first += step
            count -= step
        return whole

    def _chunk(self, number: int) -> array[int]:
        chunk = self._chunks.get(number)
        if chunk is None:
            if len(self._chunks) >= _CHUNKS_MAXIMUM:
                raise UnsupportedImage(f"{self._file.path}: its clusters are too many or too scattered")
            chunk = self._chunks[number] = array("H", bytes(2 * _CHUNK))
        return chunk

    @staticmethod
    def _add_in_chunk(chunk: array[int], start: int, count: int) -> None:
        if count > 8 and not any(chunk[start : start + count]):
            chunk[start : start + count] = array("H", (1,)) * count
            return
        for position in range(start, start + count):
            if chunk[position] < _SATURATED:
                chunk[position] += 1

    def add_tables(self, l1: array[int], records: list[SnapshotRecord]) -> None:
        """Count what the active L1 table and the snapshots' lead to, and the snapshots' own L1 tables."""
        self.walk_l1(l1, "active")
        for record in records:
            if not record.l1_entries:
                continue
            what = f"L1 table of snapshot {record.name!r}"
            if self.add(record.l1_offset, record.l1_entries * 8, what):
                data = read_structure(self._file, record.l1_offset, record.l1_entries * 8, what)
                self.walk_l1(q.table_from_bytes(data), f"snapshot {record.name!r}")

    def walk_l1(self, l1: array[int], owner: str) -> None:
        """Count the L2 tables of an L1 table and what they lead to."""
        for index, entry in enumerate(l1):
            offset = entry & q.OFFSET_MASK
            if not offset:
                continue
            what = f"L2 table {index} ({owner})"
            if self.add(offset, self._header.cluster_size, what):
                self._walk_l2(self.read_l2(offset, what), owner)

    def read_l2(self, offset: int, what: str) -> array[int]:
        """The numbers of an L2 table; missing ones at the file's end are zero."""
        return q.table_from_bytes(self._file.read(offset, self._header.cluster_size))

    def _walk_l2(self, entries: array[int], owner: str) -> None:
        if self._header.extended_l2:
            self._check_bitmaps(entries, owner)
            entries = entries[::2]
        step, external = self._header.cluster_size, self._header.has_data_file
        start = run = 0
        for entry in entries:
            if not entry:
                continue
            host = entry & q.OFFSET_MASK
            if not entry & q.COMPRESSED and host == start + run and run:
                run += step
                continue
            if run:
                self.add(start, run, f"data cluster ({owner})")
            start = run = 0
            if entry & q.COMPRESSED:
                self._add_compressed(entry, owner)
            elif host and not external:
                start, run = host, step
                if host % step or host >= self._end << self._bits:
                    self.add(host, step, f"data cluster ({owner})")
                    run = 0
        if run:
            self.add(start, run, f"data cluster ({owner})")

    def _add_compressed(self, entry: int, owner: str) -> None:
        offset, size = q.compressed_range(entry, self._bits)
        first = offset >> self._bits
        count = (offset + size - 1 >> self._bits) - first + 1
        if first + count > self._end:
            self._report.error(f"the compressed cluster ({owner}) at {offset:#x} lies outside the file")
        else:
            self.add_clusters(first, count, f"compressed cluster ({owner})")

    def _check_bitmaps(self, entries: array[int], owner: str) -> None:
        for entry, bitmap in zip(entries[::2], entries[1::2], strict=True):
            if bitmap != expected_bitmap(entry, bitmap, self._header):
                self._report.error(f"L2 entry {entry:#x} ({owner}) has the invalid bitmap {bitmap:#x}")


def expected_entry(entry: int, references: References, header: q.Header, end: int) -> int:
    """An active L2 entry as it should be: COPIED where the count is 1, nothing where it leads nowhere."""
    if entry & q.COMPRESSED:
        offset, size = q.compressed_range(entry, header.cluster_bits)
        return entry & ~q.COPIED if offset + size - 1 >> header.cluster_bits < end else 0
    host = entry & q.OFFSET_MASK
    if not host or header.has_data_file:
        return entry
    if host % header.cluster_size or host >> header.cluster_bits >= end:
        return 0
    single = references.get(host >> header.cluster_bits) == 1
    return entry | q.COPIED if single else entry & ~q.COPIED


def expected_bitmap(entry: int, bitmap: int, header: q.Header) -> int:
    """An extended entry's bitmap as it should be: none allocated that is zero or has no cluster."""
    if entry & q.COMPRESSED:
        return 0
    stored = entry & q.OFFSET_MASK or (header.has_data_file and entry & q.COPIED)
    allocated = bitmap & q.ALL_ALLOCATED if stored else 0
    return allocated | bitmap & q.ALL_ZERO & ~(allocated << 32)


def count_all(
    file: HostFile, header: q.Header, l1: array[int], records: list[SnapshotRecord], report: CheckReport
) -> References:
    """Count everything but the top tables that a rewrite would replace: refcounts, L1, snapshot table."""
    from sublet.block.qcow2.bitmaps import add_bitmaps

    references = References(file, header, report)
    references.add(0, header.cluster_size, "header")
    references.add_tables(l1, records)
    add_bitmaps(file, header, references)
    encryption = header.extension(q.EXTENSION_ENCRYPTION)
    if encryption is not None and len(encryption) >= 16:
        offset, size = int.from_bytes(encryption[:8], "big"), int.from_bytes(encryption[8:16], "big")
        if not 0 < size <= q.LUKS_BYTES_MAXIMUM:
            raise CorruptImage(f"{file.path}: the encryption header has {size} bytes")
        references.add(offset, size, "encryption header")
    return references
