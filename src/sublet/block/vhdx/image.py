"""An open VHDX image: fixed, dynamic or differencing."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from sublet.block.chain import Chain
from sublet.block.contract import BlockStatus
from sublet.block.description import (
    BackingReference,
    CheckReport,
    ImageInfo,
    MapExtent,
)
from sublet.block.format import Image, read_parent
from sublet.block.hostfile import HostFile
from sublet.block.pieces import OTHER, PARENT, ZERO, Piece, is_plain, stored_in
from sublet.block.sector_bitmap import runs
from sublet.block.sectors import zero_whole_sectors
from sublet.block.vhdx import parent as parents
from sublet.block.vhdx.blocks import PENDING_MAXIMUM, SCAN_MAXIMUM, BlockMap
from sublet.block.vhdx.check import check_blocks
from sublet.block.vhdx.journal import Journal, read_headers, read_log, read_patched
from sublet.block.vhdx.layout import (
    FILE_PARAMETERS,
    MAX_DISK_SIZE,
    NO_GUID,
    PARENT_LOCATOR,
    STATES_WITH_DATA,
    BlockState,
    MetadataItem,
    pack_metadata_table,
    pack_parent_locator,
)
from sublet.block.vhdx.metadata import HAS_PARENT, LEAVE_ALLOCATED, read_metadata
from sublet.core import InPlace
from sublet.errors import ImageError, UsageError

_PLACELESS: Final = {BlockState.NOT_PRESENT: PARENT, BlockState.PARTIAL: OTHER}


class VhdxImage(Image):
    """A VHDX disk.

    A log that was not emptied is applied: to the file when it is writable, else to what is read of it.

    Args:
        file: The image.
        chain: Opens the parent.
        check: Opened for ``check`` alone: without a parent.
    """

    format = "vhdx"

    def __init__(self, file: HostFile, chain: Chain, *, check: bool) -> None:
        header, slot = read_headers(file)
        patches, size = read_log(file, header)
        self._dirty = bool(patches)
        journal = None if file.readonly else Journal(file, header, slot)
        if journal is not None and header.log_guid != NO_GUID:
            journal.replay(patches, size)
            patches = []
        pending = patches

        def read(offset: int, size: int) -> bytes:
            return read_patched(file, pending, offset, size) if pending else file.read(offset, size)

        metadata = read_metadata(read, file.size())
        geometry = metadata.geometry
        super().__init__(
            file.path,
            geometry.disk_size,
            readonly=file.readonly,
            block_size=geometry.logical_sector_size,
        )
        self._file = file
        self._header = header
        self._journal = journal
        self._map_of_blocks = BlockMap(file, read, header, journal, metadata)
        self._places = self._map_of_blocks.places
        self.in_place: InPlace = self._places.in_place
        self._block = geometry.block_size
        self._sector = geometry.logical_sector_size
        self._chain = chain
        self._metadata = metadata
        self._parent = self._open_parent() if metadata.has_parent and not check else None

    def _open_parent(self) -> Image | None:
        parent = parents.find_parent(self._file, self._metadata.locator, self._chain)
        if parent is None:
            return None
        known = parents.linkages(self._metadata.locator)
        if not isinstance(parent, VhdxImage) or parent.data_write_guid not in known:
            parent.close()
            raise ImageError(
                f"{self.path}: its parent {parent.path} was written to since, or is another disk",
                remedy="Bring back the parent as it was when this disk was made.",
            )
        return parent

    @property
    def backing(self) -> Image | None:
        """The open parent."""
        return self._parent

    @property
    def data_write_guid(self) -> uuid.UUID:
        """Changes with what the disk holds; a child names its parent by it."""
        return (self._journal.header if self._journal is not None else self._header).data_write_guid

    def info(self) -> ImageInfo:
        """See ``Image.info``."""
        metadata = self._metadata
        kind = "fixed" if metadata.fixed else "dynamic"
        return ImageInfo(
            format="vhdx",
            path=self.path,
            size=self.size,
            file_size=self._file.size(),
            allocated=self._file.allocated(),
            block_size=self._sector,
            cluster_size=self._block,
            backing=parents.reference(metadata.locator) if metadata.has_parent else None,
            dirty=self._dirty and self._readonly,
            details={
                "subformat": "differencing" if metadata.has_parent else kind,
                "disk_id": str(metadata.disk_id),
                "logical_sector_size": self._sector,
                "physical_sector_size": metadata.physical_sector_size,
            },
        )

    def _pieces(self, offset: int, size: int) -> Iterator[tuple[int, int, int, int]]:
        """Block, offset in it, bytes, and offset from ``offset`` of each block's part of a range."""
        done = 0
        while done < size:
            block, at = divmod(offset + done, self._block)
            count = min(self._block - at, size - done)
            yield block, at, count, done
            done += count

    def _sectors(self, at: int, count: int) -> tuple[int, int]:
        """First sector and number of sectors that a part of a block touches."""
        first = at // self._sector
        return first, -(-(at + count) // self._sector) - first

    # Reading.

    def _readinto(self, offset: int, view: memoryview) -> None:
        for block, at, count, done in self._pieces(offset, len(view)):
            self._read_piece(block, at, view[done : done + count])

    def _read_piece(self, block: int, at: int, view: memoryview) -> None:
        with self._lock:
            state, data = self._map_of_blocks.lookup(block)
            if state is BlockState.PRESENT:
                self._places.found(block, data)
        if state is BlockState.PRESENT:
            self._file.readinto(data + at, view)
        elif state is BlockState.PARTIAL:
            self._read_by_bits(block, data, at, view)
        else:
            parent = self._parent if state is BlockState.NOT_PRESENT else None
            read_parent(parent, block * self._block + at, view)

    def _read_by_bits(self, block: int, data: int, at: int, view: memoryview) -> None:
        """Sectors with a bit from the block, others from the parent."""
        first, count = self._sectors(at, len(view))
        with self._lock:
            bits, position = self._map_of_blocks.bitmap(block, first, count)
        end, cursor = at + len(view), first * self._sector
        for present, sectors in runs(bits, position, count, "little"):
            start, stop = max(cursor, at), min(cursor + sectors * self._sector, end)
            part = view[start - at : stop - at]
            if present:
                self._file.readinto(data + start, part)
            else:
                read_parent(self._parent, block * self._block + start, part)
            cursor += sectors * self._sector

    def _map(self, offset: int, size: int) -> MapExtent:
        block, at = divmod(offset, self._block)
        count = min(size, self._block - at)
        with self._lock:
            state, data = self._map_of_blocks.lookup(block)
            if state is BlockState.NOT_PRESENT:
                absent = self._map_of_blocks.absent_run(block, -(-(at + size) // self._block))
                return MapExtent(
                    offset, min(size, absent * self._block - at), BlockStatus.ZERO, present=False
                )
            if state not in STATES_WITH_DATA:
                return MapExtent(offset, count, BlockStatus.ZERO)
            if state is BlockState.PARTIAL:
                first, sectors = self._sectors(at, count)
                bits, position = self._map_of_blocks.bitmap(block, first, sectors)
                present, sectors = next(runs(bits, position, sectors, "little"))
                count = min(count, (first + sectors) * self._sector - at)
                if not present:
                    return MapExtent(offset, count, BlockStatus.ZERO, present=False)
        stored = self._file.extent(data + at, count)
        return MapExtent(offset, stored.size, stored.status, host_offset=stored.offset, file=self.path)

    # Writing.

    def _write(self, offset: int, view: memoryview) -> None:
        for block, at, count, done in self._pieces(offset, len(view)):
            self._write_piece(block, at, view[done : done + count])

    def _write_piece(self, block: int, at: int, view: memoryview) -> None:
        with self._lock:
            self._map_of_blocks.journal.begin()
            state, data = self._map_of_blocks.lookup(block)
            if state not in STATES_WITH_DATA:
                state, data = self._allocate(block, at, len(view), state)
            if state is BlockState.PARTIAL:
                self._write_sectors(block, data, at, view)
                return
            self._places.allow_writes()
            self._places.found(block, data)
            # From here on the block's storage waits for this write before it becomes another's.
            self.in_place.enter()
        try:
            self._file.write(data + at, view)
        finally:
            self.in_place.leave()
        self._commit_if_due()

    def _allocate(self, block: int, at: int, count: int, state: BlockState) -> tuple[BlockState, int]:
        """Storage for a block of which a part is about to be written."""
        inherits = self._metadata.has_parent and state is BlockState.NOT_PRESENT
        partial = inherits and not self._is_whole(block, at, count)
        data = self._map_of_blocks.allocate(block, partial=partial)
        return (BlockState.PARTIAL if partial else BlockState.PRESENT), data

    def _is_whole(self, block: int, at: int, count: int) -> bool:
        """Whether a part of a block is all of it, up to the disk's end."""
        return at == 0 and count == min(self._block, self.size - block * self._block)

    def _write_sectors(self, block: int, data: int, at: int, view: memoryview) -> None:
        """Write into a partial block: whole sectors, their rest from below."""
        first, count = self._sectors(at, len(view))
        start, end = first * self._sector, (first + count) * self._sector
        if (start, end) != (at, at + len(view)):
            whole = bytearray(end - start)
            self._read_piece(block, start, memoryview(whole))
            whole[at - start : at - start + len(view)] = view
            view = memoryview(whole)
        self._file.write(data + start, view)
        self._map_of_blocks.mark(block, first, count)
        self._commit_if_due()

    def _commit_if_due(self) -> None:
        if self._map_of_blocks.pending >= PENDING_MAXIMUM:
            with self._lock:
                self._map_of_blocks.commit()

    def _write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """Ends that are no whole sectors are written; the rest is zeroed where it is stored."""

        def zero(start: int, length: int) -> None:
            for block, at, count, _ in self._pieces(start, length):
                self._zero_piece(block, at, count, unmap)

        zero_whole_sectors(offset, size, self._sector, write=self._write, zero=zero)

    def _zero_piece(self, block: int, at: int, count: int, unmap: bool) -> None:
        with self._lock:
            blocks = self._map_of_blocks
            state, data = blocks.lookup(block)
            if self._is_zero(state, block * self._block + at, count):
                return
            blocks.journal.begin()
            if self._is_whole(block, at, count) and (unmap or state not in STATES_WITH_DATA):
                blocks.release(block, BlockState.ZERO)
            else:
                if state not in STATES_WITH_DATA:
                    state, data = self._allocate(block, at, count, state)
                else:
                    self._file.write_zeroes(data + at, count, unmap=unmap)
                if state is BlockState.PARTIAL:
                    blocks.mark(block, *self._sectors(at, count))
        self._commit_if_due()

    def _is_zero(self, state: BlockState, offset: int, size: int) -> bool:
        """Whether a range without storage is known to be zero; False also where looking takes many steps."""
        if state in STATES_WITH_DATA or state is BlockState.UNDEFINED:
            return False
        if state is not BlockState.NOT_PRESENT or not self._metadata.has_parent:
            return True
        if self._parent is None:
            return False
        inside = min(size, self._parent.size - offset)
        if inside <= 0:
            return True
        extent = self._parent.block_status(offset, inside)
        return extent.status is BlockStatus.ZERO and extent.size == inside

    def _discard(self, offset: int, size: int) -> None:
        """As zeroes on a disk without a parent; another would only grow by it."""
        start, end = -(-offset // self._sector) * self._sector, (offset + size) // self._sector * self._sector
        if not self._metadata.has_parent and start < end:
            self._write_zeroes(start, end - start, unmap=True)

    def _stored(self, offset: int, size: int) -> Iterable[Piece]:
        for block, at, count, _ in self._pieces(offset, size):
            with self._lock:
                state, data = self._map_of_blocks.lookup(block)
            if state is BlockState.PRESENT:
                yield stored_in(self._file, data + at, count)
            else:
                yield Piece(_PLACELESS.get(state, ZERO), 0, count)

    @property
    def can_place(self) -> bool:
        """Without a parent."""
        return not self._metadata.has_parent and is_plain(self._file)

    def _place(self, offset: int, size: int) -> Iterable[Piece]:
        for block, at, count, _ in self._pieces(offset, size):
            with self._lock:
                self._map_of_blocks.journal.begin()
                state, data = self._map_of_blocks.lookup(block)
                if state is not BlockState.PRESENT:
                    _, data = self._allocate(block, at, count, state)
            yield stored_in(self._file, data + at, count)
        self._commit_if_due()

    def _flush(self) -> None:
        with self._lock:
            if self._map_of_blocks.commit():
                return
        self._file.flush()

    # Size, parent, check.

    def _resize(self, size: int) -> None:
        if size > MAX_DISK_SIZE or size % self._sector:
            raise UsageError(f"a VHDX of {size} bytes: at most 64 TiB, in sectors of {self._sector}")
        with self._lock, self._places.alone():
            old = self.size
            self._map_of_blocks.resize(size)
            self._size = size
            self._places.resize(size)
            self._zero_between(min(old, size), max(old, size))
            self._metadata = replace(
                self._metadata, geometry=self._map_of_blocks.geometry, bat=self._map_of_blocks.bat
            )
            self._map_of_blocks.metadata = self._metadata
            self._flush()

    def _zero_between(self, start: int, end: int) -> None:
        """Make what lies behind the smaller disk's end read as zeroes, now or when it grows again."""
        last = min(end, -(-start // self._block) * self._block)
        if start < last:
            block, at = divmod(start, self._block)
            state, data = self._map_of_blocks.lookup(block)
            if state in STATES_WITH_DATA:
                self._file.write_zeroes(data + at, last - start)
            if state is BlockState.PARTIAL:
                self._map_of_blocks.mark(block, *self._sectors(at, last - start))
        below = min(self.size, self._parent.size if self._parent is not None else 0)
        if start < below:
            self._write_zeroes(start, below - start, unmap=False)

    def set_backing(self, backing: BackingReference | None) -> None:
        """Name another parent, or none: then sectors that are not held read as zeroes."""
        self._check_writable(0, 0)
        with self._lock:
            self._flush()
            parent = None if backing is None else self._open_as_parent(backing)
            locator = {}
            if backing is not None and parent is not None:
                locator = parents.locator_values(backing.path, parent.data_write_guid)
            else:
                self._fill_partial_blocks()
            self._write_locator(locator)
            if self._parent is not None:
                self._parent.close()
            self._parent = parent

    def _open_as_parent(self, backing: BackingReference) -> VhdxImage:
        # Its identity is needed even where the image itself was opened without parents.
        chain = replace(self._chain, parents=True)
        parent = chain.open_parent(self._file, backing.path, backing.format)
        if not isinstance(parent, VhdxImage):
            raise UsageError(f"the parent of a VHDX must be a VHDX, and {backing.path} is not open as one")
        return parent

    def _fill_partial_blocks(self) -> None:
        """A disk without a parent has no partial blocks: zero the sectors that theirs lack."""
        blocks = self._map_of_blocks
        count = blocks.geometry.sectors_per_block
        for index, state, data in list(blocks.stored()):
            if state is not BlockState.PARTIAL or blocks.is_bitmap_entry(index):
                continue
            block = index - index // (blocks.geometry.chunk_ratio + 1)
            bits, position = blocks.bitmap(block, 0, count)
            at = 0
            for present, sectors in runs(bits, position, count, "little"):
                if not present:
                    self._file.write_zeroes(data + at, sectors * self._sector)
                at += sectors * self._sector
            blocks.make_present(block, data)
        blocks.commit()

    def _write_locator(self, locator: dict[str, str]) -> None:
        """Change parameters, metadata table and locator in one log entry."""
        metadata, blocks = self._metadata, self._map_of_blocks
        items = {guid: item for guid, item in metadata.items.items() if guid != PARENT_LOCATOR}
        if locator:
            raw = pack_parent_locator(locator)
            offset = max(item.offset + item.length for item in items.values())
            items[PARENT_LOCATOR] = MetadataItem(PARENT_LOCATOR, offset, len(raw), required=True)
            blocks.change_metadata(metadata.region.offset + offset, raw)
        flags = metadata.fixed * LEAVE_ALLOCATED | bool(locator) * HAS_PARENT
        blocks.change_metadata(metadata.position(FILE_PARAMETERS) + 4, flags.to_bytes(4, "little"))
        table = pack_metadata_table(list(items.values()))
        blocks.change_metadata(metadata.region.offset, table)
        blocks.commit()
        self._metadata = replace(metadata, items=items, has_parent=bool(locator), locator=locator)
        blocks.metadata = self._metadata

    def _check_image(self, *, repair: bool) -> CheckReport:
        with self._lock, self._places.alone():
            return check_blocks(self._file, self._map_of_blocks, repair=repair)

    def _close(self) -> None:
        try:
            if self._journal is not None and self._journal.begun and not self._map_of_blocks.pending:
                self._journal.empty()
                if self._map_of_blocks.geometry.blocks <= SCAN_MAXIMUM:
                    self._map_of_blocks.trim()
        finally:
            self._file.close()
            if self._parent is not None:
                self._parent.close()
