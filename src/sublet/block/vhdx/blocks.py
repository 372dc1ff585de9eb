"""Blocks of a VHDX disk: block allocation table, sector bitmaps, and free space of the file.

Table and bitmaps change in memory; ``commit`` puts the changed pages through the log, behind the data that
they refer to, bitmaps before table entries. Storage of a freed block is used again only after that.

Reference: MS-VHDX 8.0 §2.4 "Blocks", §2.5 "BAT".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

from sublet.block.hostfile import HostFile
from sublet.block.pages import PAGE, Pages
from sublet.block.places import Places
from sublet.block.sector_bitmap import set_bits
from sublet.block.vhdx.journal import BATCH, Journal
from sublet.block.vhdx.layout import (
    BITMAP_BLOCK_SIZE,
    HEADER_SECTION,
    MIB,
    REGION_OFFSETS,
    STATES_WITH_DATA,
    VIRTUAL_DISK_SIZE,
    BlockState,
    Header,
    Region,
    bat_entry,
    pack_regions,
    split_entry,
)
from sublet.block.vhdx.log import MAX_FILE
from sublet.block.vhdx.metadata import Geometry, Metadata, bat_length
from sublet.errors import CorruptImage, HostRefused, InternalError

PENDING_MAXIMUM: Final = BATCH
"""Changes after which ``commit`` is due."""
SCAN_MAXIMUM: Final = 1 << 20
"""Blocks up to which holes in the file are looked for, to fill them."""
_ENTRY: Final = struct.Struct("<Q")
_COPY: Final = 1 << 20
_EMPTY_PAGE: Final = bytes(PAGE)


class BlockMap:
    """Where the blocks are. Not thread-safe: the image's lock guards every method.

    Args:
        file: The image.
        read: ``read(offset, size)`` of the file as its log has it.
        header: Where the log is.
        journal: Writes metadata; None for a read-only image.
        metadata: Regions and items.
    """

    def __init__(
        self,
        file: HostFile,
        read: Callable[[int, int], bytes],
        header: Header,
        journal: Journal | None,
        metadata: Metadata,
    ) -> None:
        self._file = file
        self._header = header
        self._journal = journal
        self.metadata = metadata
        self.geometry = metadata.geometry
        self.bat = metadata.bat
        self._pages = Pages(read, MAX_FILE)
        self.places = Places(file, self.geometry.disk_size, self.geometry.block_size)
        self._file_end = file.size()
        self._freed: list[int] = []
        self._spare: list[int] | None = None

    @property
    def journal(self) -> Journal:
        """The journal of a writable image."""
        if self._journal is None:
            raise InternalError("a read-only VHDX is being written")
        return self._journal

    def lookup(self, block: int) -> tuple[BlockState, int]:
        """State of a payload block, and bytes from the file's start to its data where it has some.

        Raises:
            CorruptImage: The entry has a reserved state, or points to where no block can be.
        """
        state, offset = split_entry(self.entry(self._index(block)))
        if state not in STATES_WITH_DATA:
            return state, 0
        if offset < HEADER_SECTION or offset >= self._file_end:
            raise CorruptImage(f"VHDX BAT: block {block} is at {offset}, outside the file's data area")
        if state is BlockState.PARTIAL and not self.metadata.has_parent:
            raise CorruptImage(f"VHDX BAT: block {block} is partially present in a disk without a parent")
        return state, offset

    def entry(self, index: int) -> int:
        """A raw entry of the table."""
        number, at = divmod(self.bat.offset + index * 8, PAGE)
        (value,) = _ENTRY.unpack_from(self._pages.page(number), at)
        return int(value)

    def _index(self, block: int) -> int:
        """Where a payload block's entry is: bitmap entries lie between them (§2.5)."""
        return block + block // self.geometry.chunk_ratio

    def _bitmap_index(self, block: int) -> int:
        """Where the entry of the bitmap that covers a payload block is."""
        ratio = self.geometry.chunk_ratio
        return block // ratio * (ratio + 1) + ratio

    def _set_entry(self, index: int, value: int) -> None:
        number, at = divmod(self.bat.offset + index * 8, PAGE)
        _ENTRY.pack_into(self._pages.change(number), at, value)
        if not self.is_bitmap_entry(index):
            self.places.gone(index - index // (self.geometry.chunk_ratio + 1))

    def absent_run(self, block: int, limit: int) -> int:
        """How many blocks from ``block`` on are not present, at most ``limit``."""
        count = 0
        while count < limit:
            number, at = divmod(self.bat.offset + self._index(block + count) * 8, PAGE)
            page = self._pages.page(number)
            if at == 0 and page == _EMPTY_PAGE:
                # Bitmap entries among them are no blocks; short of the page's end, the loop goes on.
                count += max(1, PAGE // 8 - 1 - PAGE // 8 // self.geometry.chunk_ratio)
            elif page[at] & 7 == BlockState.NOT_PRESENT:
                count += 1
            else:
                break
        return min(count, limit)

    def stored(self) -> Iterator[tuple[int, BlockState, int]]:
        """Entries with storage: index, state and offset. Reserved states are left out."""
        first, count = self.bat.offset, min(self.geometry.entries, self.bat.length // 8)
        for number in range(first // PAGE, -(-(first + count * 8) // PAGE)):
            page = self._pages.page(number)
            if page == _EMPTY_PAGE:
                continue
            for at, (value,) in enumerate(_ENTRY.iter_unpack(page)):
                index = (number * PAGE - first) // 8 + at
                if value & 7 in STATES_WITH_DATA and index < count:
                    yield index, BlockState(value & 7), (value >> 20) * MIB

    def storage_size(self, index: int) -> int:
        """Bytes of the block that entry ``index`` of the table describes."""
        return BITMAP_BLOCK_SIZE if self.is_bitmap_entry(index) else self.geometry.block_size

    def is_bitmap_entry(self, index: int) -> bool:
        """Whether entry ``index`` is a sector bitmap's."""
        ratio = self.geometry.chunk_ratio
        return index % (ratio + 1) == ratio

    def areas(self) -> list[tuple[int, int]]:
        """Half-open ranges of bytes that no block may touch, log and regions among them."""
        areas = [
            (0, HEADER_SECTION),
            (self._header.log_offset, self._header.log_offset + self._header.log_length),
        ]
        for region in (self.bat, self.metadata.region):
            areas.append((region.offset, region.offset + region.length))
        return areas

    # Allocation.

    def allocate(self, block: int, *, partial: bool) -> int:
        """Give a payload block storage that reads as zeroes.

        Args:
            partial: It will hold some sectors only, the others being the parent's.

        Returns:
            Bytes from the file's start to its data.
        """
        self.journal.begin()
        offset = self._take(self.geometry.block_size)
        state = BlockState.PARTIAL if partial else BlockState.PRESENT
        if partial:
            self._prepare_bitmap(block)
        self._set_entry(self._index(block), bat_entry(state, offset))
        return offset

    def release(self, block: int, state: BlockState) -> None:
        """Take a payload block's storage away, if any, and give it a state without."""
        self.journal.begin()
        self._load_spare()
        old, offset = self.lookup(block)
        if old in STATES_WITH_DATA:
            self._freed.append(offset)
        self._set_entry(self._index(block), bat_entry(state))

    def forget(self, index: int) -> None:
        """Drop an entry of the table that has no storage in the file."""
        self.journal.begin()
        self._set_entry(index, 0)

    def make_present(self, block: int, offset: int) -> None:
        """A partial block now holds all its sectors."""
        self.journal.begin()
        self._set_entry(self._index(block), bat_entry(BlockState.PRESENT, offset))

    def _take(self, size: int) -> int:
        spare = self._load_spare()
        if size == self.geometry.block_size and spare:
            offset = spare.pop()
            self._file.write_zeroes(offset, size)
            return offset
        return self._append(size)

    def _append(self, size: int) -> int:
        offset = -(-self._file_end // MIB) * MIB
        if offset + size > MAX_FILE:
            raise HostRefused("the VHDX file would grow beyond 128 TiB")
        self._file.truncate(offset + size)
        self._file_end = offset + size
        return offset

    def _load_spare(self) -> list[int]:
        """Offsets of holes that are large enough for a block, the first one last."""
        if self._spare is None:
            self._spare = self._find_holes() if self.geometry.blocks <= SCAN_MAXIMUM else []
        return self._spare

    def _used(self) -> list[tuple[int, int]]:
        """Half-open ranges of bytes in use, in order."""
        blocks = ((offset, offset + self.storage_size(index)) for index, _, offset in self.stored())
        return sorted([*self.areas(), *blocks])

    def _find_holes(self) -> list[int]:
        size, holes, end = self.geometry.block_size, list[int](), 0
        for start, stop in [*self._used(), (self._file_end, self._file_end)]:
            first = -(-end // MIB) * MIB
            holes += range(first, min(start, self._file_end) - size + 1, size)
            end = max(end, stop)
        return holes[::-1]

    def used_end(self) -> int:
        """Bytes up to the end of all that the file holds."""
        return max(stop for _, stop in self._used())

    # Sector bitmaps of partial blocks.

    def bitmap(self, block: int, first: int, count: int) -> tuple[bytes, int]:
        """Bits of a partial block's sectors.

        Returns:
            Bytes that hold them, least significant bit first, and the position of sector ``first`` in them.

        Raises:
            CorruptImage: The bitmap block is missing.
        """
        start = self._bit_position(block, first)
        offset, end = start // 8, -(-(start + count) // 8)
        return self._read_pages(offset, end - offset), start % 8

    def mark(self, block: int, first: int, count: int) -> None:
        """Note that a partial block holds ``count`` sectors from ``first`` on; their data was written."""
        self.journal.begin()
        position, end = self._bit_position(block, first), self._bit_position(block, first) + count
        while position < end:
            number, bit = divmod(position, PAGE * 8)
            step = min(end - position, PAGE * 8 - bit)
            set_bits(self._pages.change(number), bit, step, "little")
            position += step

    def _bit_position(self, block: int, sector: int) -> int:
        """Bits from the file's start to the bit of a sector."""
        state, offset = split_entry(self.entry(self._bitmap_index(block)))
        if state is not BlockState.PRESENT or not HEADER_SECTION <= offset < self._file_end:
            raise CorruptImage(f"VHDX BAT: block {block} is partial, but its sector bitmap is missing")
        in_chunk = block % self.geometry.chunk_ratio * self.geometry.sectors_per_block
        return offset * 8 + in_chunk + sector

    def _read_pages(self, offset: int, size: int) -> bytes:
        first, last = offset // PAGE, (offset + size - 1) // PAGE
        raw = b"".join(bytes(self._pages.page(number)) for number in range(first, last + 1))
        return raw[offset - first * PAGE :][:size]

    def _prepare_bitmap(self, block: int) -> None:
        """Clear a block's bits, in a bitmap block that is allocated if need be."""
        index = self._bitmap_index(block)
        state, _ = split_entry(self.entry(index))
        if state is not BlockState.PRESENT:
            self._set_entry(index, bat_entry(BlockState.PRESENT, self._append(BITMAP_BLOCK_SIZE)))
            return
        position, count = self._bit_position(block, 0), self.geometry.sectors_per_block
        for number in range(position // 8 // PAGE, -(-(position + count) // 8 // PAGE)):
            start = max(0, position // 8 - number * PAGE)
            end = min(PAGE, (position + count) // 8 - number * PAGE)
            self._pages.change(number)[start:end] = bytes(end - start)

    # Commit.

    @property
    def pending(self) -> int:
        """Changes that ``commit`` would write."""
        return len(self._pages.dirty) + len(self._freed)

    def commit(self) -> bool:
        """Write the changed pages.

        Returns:
            Whether there were any; then everything written before is stable as well.
        """
        if not self.pending:
            return False
        bat = range(self.bat.offset // PAGE, (self.bat.offset + self.bat.length) // PAGE)
        order = sorted(self._pages.dirty, key=lambda number: (number in bat, number))
        self.journal.write({number * PAGE: self._pages.dirty[number] for number in order})
        self._pages.settle()
        if self._freed:
            self.places.settle()
        if self._spare is not None:
            for offset in self._freed:
                self._file.discard(offset, self.geometry.block_size)
                self._spare.append(offset)
        self._freed.clear()
        return True

    def trim(self) -> None:
        """Cut the file behind all that it holds, once everything is committed and the log empty."""
        end = self.used_end()
        if end < self._file.size():
            self._file.truncate(end)
            self._file_end = end
            self._spare = None

    # Size.

    def change_metadata(self, offset: int, data: bytes) -> None:
        """Change bytes of the metadata region, in memory until ``commit``; ``offset`` in the file."""
        while data:
            number, at = divmod(offset, PAGE)
            piece = data[: PAGE - at]
            self._pages.change(number)[at : at + len(piece)] = piece
            data, offset = data[len(piece) :], offset + len(piece)

    def resize(self, disk_size: int) -> None:
        """Change the disk's size; blocks behind its new end lose their storage."""
        old = self.geometry
        new = Geometry(disk_size, old.block_size, old.logical_sector_size)
        self.commit()
        self.journal.begin()
        if new.entries * 8 > self.bat.length:
            self._move_bat(bat_length(new))
        size_item = self.metadata.position(VIRTUAL_DISK_SIZE)
        if disk_size < old.disk_size:
            self.change_metadata(size_item, disk_size.to_bytes(8, "little"))
            self.commit()
            self._free_blocks(new.blocks, old.blocks)
        else:
            self._clear_entries(old, new)
            self.commit()
            self.change_metadata(size_item, disk_size.to_bytes(8, "little"))
        self.geometry = new
        self.commit()

    def _free_blocks(self, first: int, end: int) -> None:
        self._load_spare()
        limit = self._index(first)
        for index, _, offset in list(self.stored()):
            if index >= limit and not self.is_bitmap_entry(index):
                self._freed.append(offset)
                self._set_entry(index, 0)
            if self.pending >= PENDING_MAXIMUM:
                self.commit()

    def _clear_entries(self, old: Geometry, new: Geometry) -> None:
        """Entries that the disk comes to have may hold anything."""
        index = self._index(old.blocks)
        while index < new.entries:
            number, at = divmod(self.bat.offset + index * 8, PAGE)
            page = self._pages.page(number)
            if at == 0 and page == _EMPTY_PAGE:
                index += PAGE // 8
                continue
            if page[at : at + 8] != bytes(8) and (index >= old.entries or not self.is_bitmap_entry(index)):
                self._set_entry(index, 0)
            index += 1

    def _move_bat(self, length: int) -> None:
        """Copy the table to the file's end, then name it in the region tables.

        The log is emptied first: its entries are of places in the old table.
        """
        self.journal.empty()
        offset = self._append(length)
        for at in range(0, self.bat.length, _COPY):
            self._file.write(offset + at, self._file.read(self.bat.offset + at, _COPY))
        self._file.flush()
        bat = Region(self.bat.guid, offset, length)
        raw = pack_regions([bat, self.metadata.region])
        for table in REGION_OFFSETS:
            self._file.write(table, raw)
            self._file.flush()
        self.bat = bat
        self._spare = None
        self.journal.begin()
