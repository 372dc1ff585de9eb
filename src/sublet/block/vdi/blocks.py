"""The blocks of an open VDI image: which are used, and where new ones go.

The header counts the blocks that were handed out, and other programs hand out the next number blindly. So the
count reaches the file before a map entry that relies on it, and never too small. Since both cannot change at
once, a crash may leave a count that is too large: a leak, whose blocks are handed out first when the image is
written again.
"""

from __future__ import annotations

import uuid
from array import array
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Final

from sublet.block import clusters
from sublet.block.clusters import ClusterStore, ReadBelow
from sublet.block.entries import decode
from sublet.block.hostfile import HostFile
from sublet.block.vdi.layout import UNALLOCATED, ZERO, Header
from sublet.errors import CorruptImage, UnsupportedImage

_PAGE_ENTRIES: Final = 1024
_MAP_PIECE: Final = 1 << 20
_SLACK: Final = 1024
COUNTED_MAXIMUM: Final = 1 << 27
"""Blocks of the largest image whose use is counted: 128 TiB of 1 MiB blocks."""


class Blocks(ClusterStore):
    """The clusters of a VDI image (``ClusterStore``).

    Args:
        file: The image.
        header: What its header says; ``header`` is what it will say after ``flush``.
        size: Bytes of the disk.
        lock: The image's lock.
        below: Reads the parent of a differencing image.
    """

    def __init__(
        self,
        file: HostFile,
        header: Header,
        *,
        size: int,
        lock: AbstractContextManager[object],
        below: ReadBelow | None,
    ) -> None:
        super().__init__(
            file,
            size=size,
            cluster_size=header.block_size,
            page_entries=_PAGE_ENTRIES,
            lock=lock,
            below=below,
        )
        self.header = header
        self._written = header
        self._holes: list[int] | None = None
        self._touched = False

    @property
    def limit(self) -> int:
        """One more than the highest block number; a grown image that crashed has more than the disk needs."""
        blocks = self.header.blocks
        return max(blocks, min(self.header.allocated, 2 * blocks + _SLACK))

    def touch(self) -> None:
        """The content is about to change: give it a new identity, so that children of it notice."""
        if not self._touched:
            with self._table_lock:
                self._touched = True
                self.header = self.header.replace(last_change=uuid.uuid4())

    def write_header(self) -> None:
        """Write the header if it has changed."""
        if self.header != self._written:
            self.file.write(0, self.header.pack())
            self._written = self.header

    def entries(self) -> Iterator[tuple[int, array[int]]]:
        """The map as the file has it, in pieces: number of the first block, and entries. Flush before."""
        header = self.header
        for start in range(0, header.map_size, _MAP_PIECE):
            size = min(_MAP_PIECE, header.map_size - start)
            yield start // 4, decode(self.file.read(header.map_offset + start, size))

    def set_entry(self, block: int, entry: int) -> None:
        """Change the map, from the next ``flush`` on in the file too."""
        number, within = divmod(block, _PAGE_ENTRIES)
        self._pages.set(self._page_offset(number), within, entry)
        if self.places is not None:
            self.places.gone(block)

    def use(self) -> tuple[bytearray, int]:
        """A byte for each block of the file that says whether the map has it, and the highest one or -1.

        Raises:
            UnsupportedImage: The image is too large to count.
        """
        limit = self.limit
        if limit > COUNTED_MAXIMUM:
            raise UnsupportedImage(f"{self.file.path}: {limit} blocks are too many to count")
        used = bytearray(limit)
        for _, entries in self.entries():
            for entry in entries:
                if entry < limit:
                    used[entry] = 1
        return used, used.rfind(1)

    def close_holes(self, *, blocks: int | None = None) -> int:
        """Move the last blocks into holes, so that the count is what the map has; blocks given back.

        No other request may be running. The map must be flushed.

        Args:
            blocks: Blocks of the disk from now on; later ones must be unallocated.
        """
        used, highest = self.use()
        target = used.count(1)
        late = [number for number in range(target, highest + 1) if used[number]]
        self.move_blocks(dict(zip(late, _holes(used, target), strict=True)))
        before = self.header.allocated
        self.header = self.header.replace(allocated=target, **({} if blocks is None else {"blocks": blocks}))
        self._holes = []
        return max(0, before - target)

    def clear(self) -> None:
        """Make every block unallocated. The map must be flushed; the header is not written yet."""
        header = self.header
        empty = UNALLOCATED.to_bytes(4, "little")
        for start in range(0, header.map_size, _MAP_PIECE):
            count = min(_MAP_PIECE, header.map_size - start) // 4
            self.file.write(header.map_offset + start, empty * count)
        self.file.flush()
        self._pages.forget()
        self._holes = []
        self.header = header.replace(allocated=0)

    def cut_file(self) -> None:
        """Give back what lies after the last block."""
        header = self.header
        end = header.data_offset + header.allocated * header.stride
        if end < self.file.size():
            self.file.truncate(end)
        self._file_size = min(self._file_size, end)

    def resized(self, size: int) -> None:
        """Take another size of the disk, and a header that somebody else wrote."""
        self.size = size
        self._pages.forget()

    def vacate(self, cut: int) -> None:
        """Move the first ``cut`` blocks behind all others. No other request may be running."""
        used, highest = self.use()
        sources = [number for number in range(min(cut, len(used))) if used[number]]
        start = max(highest + 1, cut)
        self.header = self.header.replace(allocated=start + len(sources))
        self.write_header()
        self.move_blocks({source: start + index for index, source in enumerate(sources)})

    def move_blocks(self, moves: dict[int, int]) -> None:
        """Copy blocks to free numbers, and once they are there point the map at the copies."""
        for source, target in moves.items():
            self.copy_block(source, target)
        self.file.flush()
        self._renumber(moves)

    def copy_block(self, source: int, target: int) -> None:
        """Copy what one block holds to a free one."""
        stride, start = self.header.stride, self.header.data_offset
        for offset in range(0, stride, _MAP_PIECE):
            size = min(_MAP_PIECE, stride - offset)
            data = self.file.read(start + source * stride + offset, size)
            self.file.write(start + target * stride + offset, data)
        self._file_size = max(self._file_size, start + (target + 1) * stride)

    def _renumber(self, moves: dict[int, int]) -> None:
        """Point the map at the copies, in one step between two barriers."""
        if not moves:
            return
        for first, entries in self.entries():
            for index, entry in enumerate(entries):
                if entry in moves:
                    self.set_entry(first + index, moves[entry])
        self._pages.take_changes()
        self._pages.write_changes()
        self.file.flush()

    # ClusterStore

    def _page_offset(self, number: int) -> int:
        return self.header.map_offset + number * _PAGE_ENTRIES * 4

    def _locate(self, entry: int) -> int:
        header = self.header
        # The usual case first: this is on the way of every request.
        if entry < header.blocks or entry < self.limit:
            return header.data_offset + entry * header.stride + header.block_extra
        if entry == UNALLOCATED:
            return clusters.UNALLOCATED
        if entry == ZERO:
            return clusters.ZERO
        raise CorruptImage(f"{self.file.path}: block map: block {entry} of {self.header.blocks}")

    @property
    def _entry_step(self) -> int:
        return 1

    def _is_run(self, first: int, last: int) -> bool:
        return last < self.limit and not self.header.block_extra

    @property
    def _empty_entry(self) -> int:
        return UNALLOCATED

    @property
    def _zero_entry(self) -> int:
        return ZERO

    def _allocate(self, count: int) -> tuple[int, int]:
        if self._holes is None:
            self._find_holes()
        number, count = self._take(count)
        header = self.header
        start = header.data_offset + number * header.stride
        stale = min(count * header.stride, self._file_size - start)
        if stale > 0:
            self.file.write_zeroes(start, stale)
        return header.block_offset(number), count

    def _take(self, count: int) -> tuple[int, int]:
        """Numbers of free blocks: a hole, or up to ``count`` after the last block."""
        if self._holes:
            return self._holes.pop(), 1
        number = self.header.allocated
        count = min(1 if self.header.block_extra else count, self.header.blocks - number)
        if count <= 0:
            raise CorruptImage(f"{self.file.path}: all {self.header.blocks} blocks are in use, some twice")
        self.header = self.header.replace(allocated=number + count)
        return number, count

    def _link(self, cluster: int, host: int) -> None:
        if host == clusters.ZERO:
            self.set_entry(cluster, ZERO)
        else:
            self.set_entry(cluster, (host - self.header.data_offset) // self.header.stride)

    def _before_barrier(self) -> None:
        self.write_header()

    def _find_holes(self) -> None:
        """What a crash left behind; also mends a count that is too small, which would lose data."""
        if self.limit > COUNTED_MAXIMUM:
            self._holes = []
            return
        used, highest = self.use()
        if self.header.allocated != highest + 1:
            self.header = self.header.replace(allocated=highest + 1)
        self._holes = list(reversed(_holes(used, highest + 1)))


def _holes(used: bytearray, end: int) -> list[int]:
    """Blocks below ``end`` that the map does not have."""
    holes = []
    at = used.find(0, 0, end)
    while at >= 0:
        holes.append(at)
        at = used.find(0, at + 1, end)
    return holes
