"""Blocks of a dynamic or differencing VHD: allocation table, sector bitmaps, space after the last block.

Order of writes, so that a crash at any point leaves a disk that opens and loses nothing flushed:

* The allocation table and the sector bitmaps change in memory. ``commit`` flushes the data they refer to,
  then writes them. Until then a new block is leaked space, and a sector newly held is still the parent's.
* Storage of a freed block is zeroed and used again only after the table without it is on stable storage.
* The footer at the file's end is never overwritten while it is the only one there: the file first grows by
  more than is needed, gets a footer at its new end, and is flushed. ``trim`` undoes that the same way.

Reference: VHD 1.0 "Block Allocation Table and Data Blocks".
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from typing import Final

from sublet.block.hostfile import HostFile
from sublet.block.pages import PAGE, Pages
from sublet.block.places import Places
from sublet.block.sector_bitmap import set_bits
from sublet.block.vhd.layout import FOOTER_SIZE, FREE, HEADER_SIZE, SECTOR, DynamicHeader, Footer, bitmap_size
from sublet.errors import CorruptImage, HostRefused

PENDING_MAXIMUM: Final = 128
"""Changed pages and bitmaps after which ``commit`` is due."""
_GROWTH_MAXIMUM: Final = 1 << 30
_BITMAP_CACHE: Final = 4 << 20
_COPY: Final = 1 << 20
_ALIGNMENT: Final = 4096
_ENTRY: Final = struct.Struct(">I")
_ENTRIES_PER_PAGE: Final = PAGE // 4
_FREE_PAGE: Final = b"\xff" * PAGE


class BlockStore:
    """Where the blocks are. Not thread-safe: the image's lock guards every method.

    Args:
        file: The image.
        footer: As found; written at the file's end when that moves.
        header: As found.
        blocks: Blocks that the disk has; the table may have more entries.
    """

    def __init__(self, file: HostFile, footer: Footer, header: DynamicHeader, blocks: int) -> None:
        self._file = file
        self.footer = footer
        self.header = header
        self.blocks = blocks
        self.bitmap_size = bitmap_size(header.block_size)
        self.total_size = self.bitmap_size + header.block_size
        """Bytes of a block with its bitmap."""
        self._bits_size = header.block_size // SECTOR // 8
        self.full = b"\xff" * self._bits_size
        """The bitmap of a block that holds all its sectors."""
        self._cache_maximum = max(16, _BITMAP_CACHE // self._bits_size)
        self._bitmaps: dict[int, bytes | bytearray] = {}
        self._dirty_bitmaps: dict[int, bytes | bytearray] = {}
        self._freed: list[int] = []
        self._spare: list[int] = []
        self._next: int | None = None
        self._file_end = file.size()
        self._room = max(0, self._file_end - 1) // SECTOR * SECTOR
        self._stale_end = self._file_end
        self._pages = self._open_table()
        self.places = Places(file, footer.disk_size, header.block_size)

    def _open_table(self) -> Pages:
        start = self.header.table_offset
        return Pages(lambda offset, size: self._file.read(start + offset, size), table_size(self.blocks))

    @property
    def differencing(self) -> bool:
        """Whether sectors may be the parent's."""
        return self.footer.disk_type == 4

    def lookup(self, block: int) -> int | None:
        """Bytes from the file's start to a block's bitmap; None when it has no storage.

        Raises:
            CorruptImage: The entry points to where no block can be.
        """
        page = self._pages.page(block // _ENTRIES_PER_PAGE)
        (sector,) = _ENTRY.unpack_from(page, block % _ENTRIES_PER_PAGE * 4)
        if sector == FREE:
            return None
        base: int = sector * SECTOR
        if base < FOOTER_SIZE + HEADER_SIZE or base + self.bitmap_size >= self._file_end:
            raise CorruptImage(
                f"VHD allocation table: block {block} is at {base}, outside the file's data area"
            )
        return base

    def free_run(self, block: int, limit: int) -> int:
        """How many blocks from ``block`` on have no storage, at most ``limit``."""
        count = 0
        while count < limit:
            number, index = divmod(block + count, _ENTRIES_PER_PAGE)
            page = self._pages.page(number)
            if index == 0 and page == _FREE_PAGE:
                count += _ENTRIES_PER_PAGE
            elif page[index * 4 : index * 4 + 4] == b"\xff\xff\xff\xff":
                count += 1
            else:
                break
        return min(count, limit)

    def entries(self) -> Iterator[tuple[int, int]]:
        """Blocks with storage and their entries, unchecked."""
        for number in range(-(-self.blocks // _ENTRIES_PER_PAGE)):
            page = self._pages.page(number)
            if page == _FREE_PAGE:
                continue
            first = number * _ENTRIES_PER_PAGE
            for index, sector in enumerate(_numbers(page)):
                if sector != FREE and first + index < self.blocks:
                    yield first + index, sector

    def allocate(self, block: int) -> int:
        """Give a block storage that reads as zeroes.

        Returns:
            Bytes from the file's start to its bitmap.

        Raises:
            HostRefused: The file cannot grow beyond what an entry can say.
        """
        self.data_end()
        base = self._take_spare() if self._spare else self._append()
        if self.differencing:
            self._bitmaps[block] = bytes(self._bits_size)
        else:
            self._file.write(base, b"\xff" * self.bitmap_size)
            self._bitmaps[block] = self.full
        self._set(block, base // SECTOR)
        return base

    def free(self, block: int, base: int) -> None:
        """Take a block's storage away."""
        self.data_end()  # A hole that the table still has on disk must not be found as one.
        self._set(block, FREE)
        self._bitmaps.pop(block, None)
        self._dirty_bitmaps.pop(block, None)
        self._freed.append(base)

    def bitmap(self, block: int, base: int) -> bytes | bytearray:
        """A block's bitmap; the very object ``full`` when all bits are set."""
        found = self._dirty_bitmaps.get(block) or self._bitmaps.get(block)
        if found is None:
            found = self._file.read(base, self._bits_size)
            found = self.full if found == self.full else found
            while len(self._bitmaps) >= self._cache_maximum:
                del self._bitmaps[next(iter(self._bitmaps))]
            self._bitmaps[block] = found
        return found

    def mark(self, block: int, base: int, first: int, count: int) -> None:
        """Note that a block holds ``count`` sectors from ``first`` on; their data was written."""
        bits = self.bitmap(block, base)
        if bits is self.full:
            return
        changed = bytearray(bits)
        set_bits(changed, first, count, "big")
        self._dirty_bitmaps[block] = self.full if changed == self.full else changed

    @property
    def pending(self) -> int:
        """Changes that ``commit`` would write."""
        return len(self._pages.dirty) + len(self._dirty_bitmaps) + len(self._freed)

    def commit(self) -> None:
        """Write table and bitmaps behind the data that they refer to. Does not flush them."""
        if not self.pending:
            return
        self._file.flush()
        for block, bits in self._dirty_bitmaps.items():
            base = self.lookup(block)
            if base is not None:
                self._file.write(base, bits)
        self._bitmaps.update(self._dirty_bitmaps)
        self._dirty_bitmaps.clear()
        for number, page in self._pages.dirty.items():
            self._file.write(self.header.table_offset + number * PAGE, page)
        self._pages.settle()
        self._reclaim()

    def _reclaim(self) -> None:
        """Make the storage of freed blocks zero and usable, the table without them being stable."""
        if not self._freed:
            return
        self._file.flush()
        self.places.settle()
        while self._freed:
            base = self._freed.pop()
            self._file.write_zeroes(base, self.total_size)
            self._spare.append(base)

    def _set(self, block: int, sector: int) -> None:
        page = self._pages.change(block // _ENTRIES_PER_PAGE)
        _ENTRY.pack_into(page, block % _ENTRIES_PER_PAGE * 4, sector)
        self.places.gone(block)

    def data_end(self) -> int:
        """Bytes up to the end of all that the file holds before its last footer."""
        if self._next is None:
            self._next = self._scan()
        return self._next

    def _scan(self) -> int:
        """Find the end of the data, and the holes before it that are large enough for a block."""
        limit = self._file_end // SECTOR
        texts = (entry.offset + entry.length for entry in self.header.locators)
        areas = [end for end in (*texts, self.footer.data_offset + HEADER_SIZE) if end <= self._file_end]
        end = -(-max(self.table_end, *areas) // SECTOR) * SECTOR
        for sector in sorted(sector for _, sector in self.entries() if sector < limit):
            gap = (sector * SECTOR - end) // self.total_size
            self._spare += [end + index * self.total_size for index in range(gap)]
            end = max(end, sector * SECTOR + self.total_size)
        return end

    def _take_spare(self) -> int:
        base = self._spare.pop()
        self._file.write_zeroes(base, self.total_size)
        return base

    @property
    def table_end(self) -> int:
        """Bytes up to the end of the allocation table."""
        return self.header.table_offset + table_size(max(self.blocks, self.header.max_table_entries))

    def _append(self) -> int:
        """New storage of zeroes for a block, its data on a multiple of 4096 bytes."""
        base = -(-(self.data_end() + self.bitmap_size) // _ALIGNMENT) * _ALIGNMENT - self.bitmap_size
        if base // SECTOR >= FREE:
            raise HostRefused("a VHD file cannot grow beyond 2 TiB", remedy="Convert the disk to VHDX.")
        self.reserve(base, self.total_size)
        return base

    def reserve(self, start: int, size: int) -> None:
        """Take ``size`` bytes from ``start``, not before ``data_end``, and make them zero."""
        if start + size > self._room:
            self._grow(start + size)
        if start < self._stale_end:
            self._file.write_zeroes(start, min(size, self._stale_end - start))
        self._next = start + size

    def _grow(self, end: int) -> None:
        """Move the last footer behind ``end`` and some more."""
        room = end + min(end // 2, _GROWTH_MAXIMUM) // SECTOR * SECTOR
        self._file.write(room, self.footer.pack())
        self._file.flush()
        if self._room >= self.data_end():
            self._file.write_zeroes(self._room, FOOTER_SIZE)
        self._room, self._file_end = room, room + FOOTER_SIZE

    def restore_footer(self) -> None:
        """Write a footer behind all data, where a crash left none at the file's end."""
        end = self.data_end()
        self._file.write(end, self.footer.pack())
        self._file.flush()
        self._file.truncate(end + FOOTER_SIZE)
        self._room, self._file_end = end, end + FOOTER_SIZE
        self._stale_end = self._file_end

    def trim(self) -> None:
        """Give back the room after the last block, once everything else is committed."""
        if self._spare:
            # The last block may be another now, and between blocks is what aligned them.
            self._spare.clear()
            self._next = self._scan()
        end = self.data_end()
        if end >= self._room:
            return
        self._file.write(end, self.footer.pack())
        self._file.flush()
        self._file.truncate(end + FOOTER_SIZE)
        self._spare = [base for base in self._spare if base < end]
        self._next = self._room = end
        self._file_end = self._stale_end = end + FOOTER_SIZE

    def write_footers(self, footer: Footer) -> None:
        """Replace both footers, the copy at the file's start first; each is flushed before the next step."""
        self.footer = footer
        self._file.write(0, footer.pack())
        self._file.flush()
        self._file.write(self._room, footer.pack())
        self._file.flush()

    def extend_table(self, blocks: int) -> None:
        """Make the table hold ``blocks`` entries, new ones free, all of it on stable storage."""
        self.commit()
        new_size = table_size(blocks)
        capacity = table_size(self.header.max_table_entries)
        if new_size > capacity:
            self._move_table(new_size, blocks)
        elif blocks > self.blocks:
            start = self.header.table_offset + self.blocks * 4
            self._file.write(start, b"\xff" * (self.header.table_offset + new_size - start))
        if blocks > self.header.max_table_entries:
            self.write_header(self.header.at_table(self.header.table_offset, blocks))
        self.blocks = blocks
        self._pages = self._open_table()

    def _move_table(self, new_size: int, blocks: int) -> None:
        """Copy the table to the end of the data, then point the header there."""
        start, entries = -(-self.data_end() // _ALIGNMENT) * _ALIGNMENT, self.blocks * 4
        self.reserve(start, new_size)
        for at in range(0, entries, _COPY):
            piece = self._file.read(self.header.table_offset + at, min(_COPY, entries - at))
            self._file.write(start + at, piece)
        for at in range(entries, new_size, _COPY):
            self._file.write(start + at, b"\xff" * min(_COPY, new_size - at))
        self._file.flush()
        self.write_header(self.header.at_table(start, blocks))

    def write_header(self, header: DynamicHeader) -> None:
        """Replace the dynamic header and flush; its changing fields share one sector with the checksum."""
        self._file.flush()
        self._file.write(self.footer.data_offset, header.pack())
        self._file.flush()
        self.header = header

    def shrink_table(self, blocks: int) -> None:
        """Free the blocks from ``blocks`` on; the footers say already that they are not part of the disk."""
        for block, _ in list(self.entries()):
            if block >= blocks:
                self._free_whatever(block)
        self.commit()
        self.blocks = blocks
        self._pages = self._open_table()

    def forget(self, blocks: list[int]) -> None:
        """Drop blocks that have no storage in the file."""
        for block in blocks:
            self._set(block, FREE)
        self.commit()

    def _free_whatever(self, block: int) -> None:
        try:
            base = self.lookup(block)
        except CorruptImage:
            self._set(block, FREE)
            return
        if base is not None:
            self.free(block, base)


def table_size(entries: int) -> int:
    """Bytes of an allocation table, in whole sectors."""
    return -(-entries * 4 // SECTOR) * SECTOR


def _numbers(page: bytes | bytearray) -> array[int]:
    numbers = array("I", bytes(page))
    numbers.byteswap()
    return numbers
