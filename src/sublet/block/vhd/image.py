"""Open VHD images: fixed ones, and dynamic or differencing ones.

A dynamic disk's sectors without a bit in their block's bitmap are zero, a differencing disk's are the
parent's (VHD 1.0 "Block Allocation Table and Data Blocks").
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace

from sublet.block.chain import Chain
from sublet.block.contract import BlockStatus
from sublet.block.description import (
    BackingReference,
    CheckReport,
    ImageInfo,
    MapExtent,
)
from sublet.block.flat import FlatImage
from sublet.block.format import Image, read_parent
from sublet.block.hostfile import HostFile
from sublet.block.pieces import OTHER, PARENT, Piece, is_plain, stored_in
from sublet.block.sector_bitmap import runs
from sublet.block.sectors import zero_whole_sectors
from sublet.block.vhd import parent as parents
from sublet.block.vhd.blocks import PENDING_MAXIMUM, BlockStore
from sublet.block.vhd.check import check_blocks
from sublet.block.vhd.layout import (
    FOOTER_SIZE,
    HEADER_SIZE,
    MAX_DISK_SIZE,
    SECTOR,
    DiskType,
    DynamicHeader,
    Footer,
)
from sublet.core import InPlace
from sublet.errors import CorruptImage, ImageError, UsageError


class FixedVhd(FlatImage):
    """A fixed disk: its bytes, then a footer."""

    format = "vhd"

    def __init__(self, file: HostFile, footer: Footer) -> None:
        if footer.disk_size + FOOTER_SIZE > file.size() + 1:
            raise CorruptImage(f"{file.path}: the footer says {footer.disk_size} bytes, the file has fewer")
        super().__init__(file.path, file, footer.disk_size, readonly=file.readonly)
        self._footer = footer

    @property
    def footer(self) -> Footer:
        """The footer as it is now."""
        return self._footer

    def info(self) -> ImageInfo:
        """See ``Image.info``."""
        return describe(self._file, self._footer, None, None)

    def _resize(self, size: int) -> None:
        """The new footer is stable before the old one goes."""
        require_size(size)
        footer = self._footer.resized(size)
        self._file.flush()
        self.in_place.shut()
        try:
            self._exchange_footer(footer, size)
        finally:
            self.in_place.open()

    def _exchange_footer(self, footer: Footer, size: int) -> None:
        old = self.size
        self._file.write(size, footer.pack())
        self._file.flush()
        if size > old:
            self._file.write_zeroes(old, min(FOOTER_SIZE, size - old))
        self._file.truncate(size + FOOTER_SIZE)
        self._file.flush()
        self._footer, self._size = footer, size
        self.in_place.resize(size)

    def _check_image(self, *, repair: bool) -> CheckReport:
        report = CheckReport()
        extra = self._file.size() - self.size - FOOTER_SIZE
        if extra >= SECTOR:
            report.leak(f"{extra} bytes lie between the disk's end and the footer", repaired=repair)
            if repair:
                self._file.write(self.size, self._footer.pack())
                self._file.flush()
                self._file.truncate(self.size + FOOTER_SIZE)
        return report


class DynamicVhd(Image):
    """A dynamic or differencing disk.

    Args:
        file: The image.
        footer, header: As found.
        tail_is_good: Whether the file's last footer is what ``footer`` was read from.
        chain: Opens the parent.
        check: Opened for ``check`` alone: without a parent.
    """

    format = "vhd"

    def __init__(
        self,
        file: HostFile,
        footer: Footer,
        header: DynamicHeader,
        *,
        tail_is_good: bool,
        chain: Chain,
        check: bool,
    ) -> None:
        super().__init__(file.path, footer.disk_size, readonly=file.readonly)
        self._file = file
        self._block = header.block_size
        blocks = -(-footer.disk_size // self._block)
        require_table(file, header, blocks)
        self._store = BlockStore(file, footer, header, blocks)
        self._data = self._store.bitmap_size
        self._places = self._store.places
        self.in_place: InPlace = self._places.in_place
        self._tail_is_good = tail_is_good
        self._parent: Image | None = None
        self._chain = chain
        if footer.disk_type == DiskType.DIFFERENCING and not check:
            self._parent = self._open_parent()
        if not tail_is_good and not file.readonly and not check:
            self._store.restore_footer()
        if not file.readonly:
            self._places.allow_writes()

    def _open_parent(self) -> Image | None:
        parent = parents.find_parent(self._file, self._store.header, self._chain)
        if parent is None:
            return None
        expected, actual = self._store.header.parent_id, unique_id(parent)
        if actual != expected:
            parent.close()
            raise ImageError(f"{self.path}: its parent has the id {expected}, but {parent.path} is {actual}")
        return parent

    @property
    def backing(self) -> Image | None:
        """The open parent."""
        return self._parent

    @property
    def footer(self) -> Footer:
        """The footer as it is now."""
        return self._store.footer

    def info(self) -> ImageInfo:
        """See ``Image.info``."""
        store = self._store
        backing = parents.reference(self._file, store.header) if store.differencing else None
        return describe(self._file, store.footer, store.header, backing)

    def _pieces(self, offset: int, size: int) -> Iterator[tuple[int, int, int, int]]:
        """Block, offset in it, bytes, and offset from ``offset`` of each block's part of a range."""
        done = 0
        while done < size:
            block, at = divmod(offset + done, self._block)
            count = min(self._block - at, size - done)
            yield block, at, count, done
            done += count

    def _readinto(self, offset: int, view: memoryview) -> None:
        for block, at, count, done in self._pieces(offset, len(view)):
            self._read_piece(block, at, view[done : done + count])

    def _read_piece(self, block: int, at: int, view: memoryview) -> None:
        with self._lock:
            base = self._store.lookup(block)
            bits = None if base is None else self._store.bitmap(block, base)
            if base is not None and bits is self._store.full:
                self._places.found(block, base + self._data)
        if base is None or bits is None:
            read_parent(self._parent, block * self._block + at, view)
        elif bits is self._store.full:
            self._file.readinto(base + self._data + at, view)
        else:
            self._read_by_bits(bits, base, block, at, view)

    def _read_by_bits(
        self, bits: bytes | bytearray, base: int, block: int, at: int, view: memoryview
    ) -> None:
        """Sectors with a bit from the block, others from the parent."""
        end, position = at + len(view), at // SECTOR * SECTOR
        for present, sectors in runs(bits, at // SECTOR, -(-end // SECTOR) - at // SECTOR, "big"):
            start, stop = max(position, at), min(position + sectors * SECTOR, end)
            part = view[start - at : stop - at]
            if present:
                self._file.readinto(base + self._data + start, part)
            else:
                read_parent(self._parent, block * self._block + start, part)
            position += sectors * SECTOR

    def _write(self, offset: int, view: memoryview) -> None:
        for block, at, count, done in self._pieces(offset, len(view)):
            self._write_piece(block, at, view[done : done + count])

    def _write_piece(self, block: int, at: int, view: memoryview) -> None:
        with self._lock:
            base = self._store.lookup(block)
            if base is None:
                base = self._store.allocate(block)
            if self._store.bitmap(block, base) is not self._store.full:
                self._write_sectors(block, base, at, view)
                return
            self._places.found(block, base + self._data)
            # From here on the block's storage waits for this write before it becomes another's.
            self.in_place.enter()
        try:
            self._file.write(base + self._data + at, view)
        finally:
            self.in_place.leave()
        self._commit_if_due()

    def _write_sectors(self, block: int, base: int, at: int, view: memoryview) -> None:
        """Write into a block that lacks sectors: whole sectors, their rest from below."""
        start, end = at // SECTOR * SECTOR, -(-(at + len(view)) // SECTOR) * SECTOR
        if (start, end) != (at, at + len(view)):
            whole = bytearray(end - start)
            self._read_piece(block, start, memoryview(whole))
            whole[at - start : at - start + len(view)] = view
            view = memoryview(whole)
        self._file.write(base + self._data + start, view)
        self._store.mark(block, base, start // SECTOR, (end - start) // SECTOR)
        self._commit_if_due()

    def _commit_if_due(self) -> None:
        if self._store.pending >= PENDING_MAXIMUM:
            with self._lock:
                self._store.commit()

    def _write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """Ends that are no whole sectors are written; the rest is zeroed where it is stored."""

        def zero(start: int, length: int) -> None:
            for block, at, count, _ in self._pieces(start, length):
                self._zero_piece(block, at, count, unmap)

        zero_whole_sectors(offset, size, SECTOR, write=self._write, zero=zero)

    def _zero_piece(self, block: int, at: int, count: int, unmap: bool) -> None:
        with self._lock:
            base = self._store.lookup(block)
            if base is None:
                if self._parent_is_zero(block * self._block + at, count):
                    return
                base = self._store.allocate(block)
                self._store.mark(block, base, at // SECTOR, count // SECTOR)
            elif unmap and not self._store.differencing and self._is_whole(block, at, count):
                self._store.free(block, base)
            else:
                self._file.write_zeroes(base + self._data + at, count, unmap=unmap)
                self._store.mark(block, base, at // SECTOR, count // SECTOR)
        self._commit_if_due()

    def _is_whole(self, block: int, at: int, count: int) -> bool:
        """Whether a part of a block is all of it, up to the disk's end."""
        return at == 0 and count == min(self._block, self.size - block * self._block)

    def _parent_is_zero(self, offset: int, size: int) -> bool:
        """Whether what is below a range is known to be zero; False also where looking takes many steps."""
        if not self._store.differencing:
            return True
        if self._parent is None:
            return False
        inside = min(size, self._parent.size - offset)
        if inside <= 0:
            return True
        extent = self._parent.block_status(offset, inside)
        return extent.status is BlockStatus.ZERO and extent.size == inside

    def _discard(self, offset: int, size: int) -> None:
        """As zeroes on a dynamic disk; a differencing one would only grow by it."""
        start, end = -(-offset // SECTOR) * SECTOR, (offset + size) // SECTOR * SECTOR
        if not self._store.differencing and start < end:
            self._write_zeroes(start, end - start, unmap=True)

    def _map(self, offset: int, size: int) -> MapExtent:
        block, at = divmod(offset, self._block)
        with self._lock:
            base = self._store.lookup(block)
            if base is None:
                free = self._store.free_run(block, -(-(at + size) // self._block))
                return MapExtent(offset, min(size, free * self._block - at), BlockStatus.ZERO, present=False)
            bits = self._store.bitmap(block, base)
        count = min(size, self._block - at)
        if bits is not self._store.full:
            present, sectors = next(
                runs(bits, at // SECTOR, -(-(at + count) // SECTOR) - at // SECTOR, "big")
            )
            count = min(count, sectors * SECTOR - at % SECTOR)
            if not present:
                return MapExtent(offset, count, BlockStatus.ZERO, present=False)
        stored = self._file.extent(base + self._data + at, count)
        return MapExtent(offset, stored.size, stored.status, host_offset=stored.offset, file=self.path)

    def _stored(self, offset: int, size: int) -> Iterable[Piece]:
        for block, at, count, _ in self._pieces(offset, size):
            with self._lock:
                base = self._store.lookup(block)
                bits = None if base is None else self._store.bitmap(block, base)
            if base is None:
                yield Piece(PARENT, 0, count)
            elif bits is self._store.full:
                yield stored_in(self._file, base + self._data + at, count)
            else:
                yield Piece(OTHER, 0, count)

    @property
    def can_place(self) -> bool:
        """All sectors of its blocks are its own."""
        return not self._store.differencing and is_plain(self._file)

    def _place(self, offset: int, size: int) -> Iterable[Piece]:
        for block, at, count, _ in self._pieces(offset, size):
            with self._lock:
                base = self._store.lookup(block)
                base = self._store.allocate(block) if base is None else base
            yield stored_in(self._file, base + self._data + at, count)
        self._commit_if_due()

    def _flush(self) -> None:
        with self._lock:
            self._store.commit()
        self._file.flush()

    def _resize(self, size: int) -> None:
        require_size(size)
        with self._lock, self._places.alone():
            old, blocks = self.size, -(-size // self._block)
            self._store.commit()
            if size > old:
                self._store.extend_table(blocks)
            self._store.write_footers(self._store.footer.resized(size))
            self._size = size
            self._places.resize(size)
            if size < old:
                self._store.shrink_table(blocks)
            self._zero_between(min(old, size), max(old, size))
            self._flush()

    def _zero_between(self, start: int, end: int) -> None:
        """Make what lies behind the smaller disk's end read as zeroes, now or when it grows again."""
        last = min(end, -(-start // self._block) * self._block)
        if start < last and (base := self._store.lookup(start // self._block)) is not None:
            at = start % self._block
            self._file.write_zeroes(base + self._data + at, last - start)
            self._store.mark(start // self._block, base, at // SECTOR, (last - start) // SECTOR)
        below = min(self.size, self._parent.size if self._parent is not None else 0)
        if start < below:
            self._write_zeroes(start, below - start, unmap=False)

    def _check_image(self, *, repair: bool) -> CheckReport:
        with self._lock, self._places.alone():
            return check_blocks(self._file, self._store, tail_is_good=self._tail_is_good, repair=repair)

    def set_backing(self, backing: BackingReference | None) -> None:
        """Name another parent, or none: then sectors that are not held read as zeroes."""
        self._check_writable(0, 0)
        with self._lock:
            self._store.commit()
            if backing is None:
                self._forget_parent()
            else:
                self._name_parent(backing)

    def _forget_parent(self) -> None:
        """The footers alone decide: the disk is dynamic from here on."""
        self._store.write_footers(replace(self._store.footer, disk_type=DiskType.DYNAMIC))
        if self._parent is not None:
            self._parent.close()
            self._parent = None

    def _name_parent(self, backing: BackingReference) -> None:
        """A new header with its locators first, then the footers that point to it, each of one sector."""
        # Its identity is needed even where the image itself was opened without parents.
        chain = replace(self._chain, parents=True)
        parent = chain.open_parent(self._file, backing.path, backing.format)
        parent_id = None if parent is None else unique_id(parent)
        if parent_id is None:
            raise UsageError(f"the parent of a VHD must be a VHD, and {backing.path} is not open as one")
        store = self._store
        start = store.data_end()
        header, area = parents.with_parent(store.header, backing.path, parent_id, start + HEADER_SIZE)
        store.reserve(start, HEADER_SIZE + len(area))
        self._file.write(start, header.pack() + area)
        self._file.flush()
        store.header = header
        footer = replace(store.footer, data_offset=start, disk_type=DiskType.DIFFERENCING)
        store.write_footers(footer)
        if self._parent is not None:
            self._parent.close()
        self._parent = parent

    def _close(self) -> None:
        try:
            if not self._readonly and not self._store.pending:
                self._store.trim()
        finally:
            self._file.close()
            if self._parent is not None:
                self._parent.close()


def unique_id(image: Image) -> uuid.UUID | None:
    """What a child knows a VHD by; None for an image of another format."""
    return image.footer.unique_id if isinstance(image, FixedVhd | DynamicVhd) else None


def require_size(size: int) -> None:
    """Refuse a disk that no VHD can hold.

    Raises:
        UsageError: It is larger than 2040 GiB.
    """
    if size > MAX_DISK_SIZE:
        raise UsageError(f"a VHD of {size} bytes: at most {MAX_DISK_SIZE} (2040 GiB)", remedy="Use VHDX.")


def require_table(file: HostFile, header: DynamicHeader, blocks: int) -> None:
    """Refuse a disk whose allocation table is too short or not in the file.

    Raises:
        CorruptImage: So it is.
    """
    if blocks > header.max_table_entries:
        raise CorruptImage(
            f"{file.path}: max table entries is {header.max_table_entries}, the disk has {blocks} blocks"
        )
    if header.table_offset + header.max_table_entries * 4 > file.size():
        raise CorruptImage(
            f"{file.path}: table offset {header.table_offset}, max table entries {header.max_table_entries}:"
            " the table is not in the file"
        )


def describe(
    file: HostFile, footer: Footer, header: DynamicHeader | None, backing: BackingReference | None
) -> ImageInfo:
    """What ``sublet disk info`` shows."""
    return ImageInfo(
        format="vhd",
        path=file.path,
        size=footer.disk_size,
        file_size=file.size(),
        allocated=file.allocated(),
        cluster_size=None if header is None else header.block_size,
        backing=backing,
        details={
            "subformat": footer.disk_type.name.lower(),
            "unique_id": str(footer.unique_id),
            "creator": footer.creator.decode("ascii", "replace").rstrip(),
            "geometry": "/".join(map(str, footer.geometry)),
        },
    )
