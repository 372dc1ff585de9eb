"""An open VDI image, and how one is created, opened and resized."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from sublet.block.chain import Chain
from sublet.block.description import (
    SECTOR,
    BackingReference,
    CheckReport,
    ImageInfo,
    MapExtent,
)
from sublet.block.format import (
    CreateOption,
    Image,
    read_flag,
    read_options,
    read_parent,
)
from sublet.block.hostfile import HostFile, HostFiles, new_file
from sublet.block.pieces import Piece
from sublet.block.places import Places
from sublet.block.vdi import check as checker
from sublet.block.vdi.blocks import Blocks
from sublet.block.vdi.layout import (
    DEFAULT_BLOCK_SIZE,
    HEADER_AREA,
    MAX_BLOCKS,
    NO_UUID,
    UNALLOCATED,
    Header,
    Kind,
    blocks_for,
    data_offset_for,
    probe,
)
from sublet.block.vdi.parent import find_parent, parent_comment, read_header
from sublet.block.vdi.resize import resize
from sublet.core import InPlace
from sublet.errors import CorruptImage, UsageError

_PIECE: Final = 1 << 20


class VdiImage(Image):
    """A VDI image: dynamic, fixed or differencing.

    Args:
        path: The image.
        readonly: Refuse writes.
        chain: Opens the file and the parent.
        check: Open no parent.

    Raises:
        HostRefused: It cannot be opened.
        CorruptImage: The header contradicts itself, or the parent has changed.
        UnsupportedImage: Another version or type.
    """

    format = "vdi"

    def __init__(self, path: Path, *, readonly: bool, chain: Chain, check: bool = False) -> None:
        self._file = chain.open_file(path, readonly=readonly)
        self._chain = chain
        self._parent: Image | None = None
        try:
            header = Header.parse(self._file.read(0, HEADER_AREA))
            if header.map_offset + header.map_size > self._file.size():
                raise CorruptImage(f"{path}: the block map of {header.blocks} blocks lies outside the file")
            size = -(-header.disk_size // SECTOR) * SECTOR
            super().__init__(path, size, readonly=readonly)
            self._reference = self._open_parent(header, check=check)
        except BaseException:
            self._file.close()
            raise
        below = self._read_below if header.kind is Kind.DIFFERENCING else None
        self._blocks = Blocks(self._file, header, size=size, lock=self._lock, below=below)
        self._places = self._blocks.places = Places(self._file, size, header.block_size)
        self.in_place: InPlace = self._places.in_place

    @property
    def blocks(self) -> Blocks:
        """The clusters, for ``check`` and tests."""
        return self._blocks

    @property
    def header(self) -> Header:
        """The header, with changes that have not reached the file."""
        return self._blocks.header

    @property
    def backing(self) -> Image | None:
        """The parent of a differencing image."""
        return self._parent

    def info(self) -> ImageInfo:
        """Sizes, kind and identities."""
        header = self.header
        return ImageInfo(
            self.format,
            self.path,
            self.size,
            self._file.size(),
            self._file.allocated(),
            cluster_size=header.block_size,
            backing=self._reference,
            details={
                "type": header.kind.name.lower(),
                "blocks": header.blocks,
                "blocks_allocated": header.allocated,
                "uuid": str(header.image),
                "modification_uuid": str(header.last_change),
                "parent_uuid": None if header.parent == NO_UUID else str(header.parent),
                "comment": header.comment.decode("utf-8", "replace"),
            },
        )

    def set_backing(self, backing: BackingReference | None) -> None:
        """Name another parent, which must be a VDI image too, or none."""
        self._check_writable(0, 0)
        self.flush()
        with self._lock:
            header = _with_parent(self.header, self.path, backing, self._chain.files)
            parent = (
                None if backing is None else self._chain.open_parent(self._file, backing.path, self.format)
            )
            if self._parent is not None:
                self._parent.close()
            self._parent, self._reference = parent, backing
            self._blocks.below = None if backing is None else self._read_below
            self._blocks.header = header
            self._blocks.flush()

    def make_empty(self) -> None:
        """Let the parent, as it now is, answer for everything again."""
        self._check_writable(0, 0)
        if self._reference is None:
            return
        self.flush()
        with self._lock, self._places.alone():
            self._blocks.clear()
            self._blocks.header = _with_parent(self.header, self.path, self._reference, self._chain.files)
            self._blocks.flush()
            self._blocks.cut_file()

    def _open_parent(self, header: Header, *, check: bool) -> BackingReference | None:
        if header.kind is not Kind.DIFFERENCING:
            return None
        reference = BackingReference(find_parent(self.path, header, self._chain), self.format)
        if self._chain.parents and not check:
            self._parent = self._chain.open_parent(self._file, reference.path, self.format)
            try:
                _check_parent(self.path, header, self._parent)
            except BaseException:
                if self._parent is not None:
                    self._parent.close()
                raise
        return reference

    def _read_below(self, offset: int, view: memoryview) -> None:
        read_parent(self._parent, offset, view)

    def _readinto(self, offset: int, view: memoryview) -> None:
        self._blocks.readinto(offset, view)

    def _write(self, offset: int, view: memoryview) -> None:
        self._blocks.touch()
        self._places.allow_writes()
        self._blocks.write(offset, view)

    def _write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        self._blocks.touch()
        self._blocks.write_zeroes(offset, size, unmap=unmap and self.header.kind is not Kind.FIXED)

    def _discard(self, offset: int, size: int) -> None:
        if self.header.kind is not Kind.FIXED:
            self._blocks.touch()
            self._blocks.discard(offset, size)

    def _map(self, offset: int, size: int) -> MapExtent:
        return self._blocks.map(offset, size)

    def _stored(self, offset: int, size: int) -> Iterable[Piece]:
        return self._blocks.stored(offset, size)

    @property
    def can_place(self) -> bool:
        """Without a parent."""
        return self._blocks.can_place

    def _place(self, offset: int, size: int) -> Iterable[Piece]:
        self._blocks.touch()
        return self._blocks.place(offset, size)

    def _flush(self) -> None:
        self._blocks.flush()

    def _resize(self, size: int) -> None:
        self._blocks.touch()
        with self._lock, self._places.alone():
            resize(self._blocks, size)
            self._size = size
            self._places.resize(size)

    def _check_image(self, *, repair: bool) -> CheckReport:
        if not self.readonly:
            self._blocks.flush()
        with self._lock, self._places.alone():
            return checker.check(self._blocks, repair=repair)

    def _close(self) -> None:
        try:
            self._file.close()
        finally:
            if self._parent is not None:
                self._parent.close()


class VdiFormat:
    """Oracle VirtualBox's own format (``ImageFormat``)."""

    name = "vdi"
    extensions = (".vdi",)
    options: tuple[CreateOption, ...] = (
        CreateOption("static", "off", "on: a fixed image, whose blocks are all there from the start"),
        CreateOption(
            "block_size", str(DEFAULT_BLOCK_SIZE), "bytes of a block; others than VirtualBox want 1 MiB"
        ),
    )

    def probe(self, head: bytes, tail: bytes, size: int) -> bool:
        """By the signature."""
        return probe(head)

    def open(self, path: Path, *, readonly: bool, chain: Chain, check: bool = False) -> Image:
        """Open; the parent of a differencing image is found by its UUID."""
        return VdiImage(path, readonly=readonly, chain=chain, check=check)

    def create(
        self,
        path: Path,
        size: int,
        *,
        options: Mapping[str, str],
        backing: BackingReference | None,
        files: HostFiles,
    ) -> None:
        """Create a dynamic, fixed (``static=on``) or, with a parent, differencing image."""
        values = read_options(self.name, self.options, options)
        header = _new_header(size, values, backing is not None)
        if backing is not None:
            header = _with_parent(header, path, backing, files)
        with new_file(files, path) as file:
            _write_new(file, header)


def _new_header(size: int, values: Mapping[str, str], child: bool) -> Header:
    fixed = read_flag("static", values["static"])
    if fixed and child:
        raise UsageError("static=on: an image with a parent cannot be fixed")
    block_size = _read_block_size(values["block_size"])
    blocks = blocks_for(size, block_size)
    if blocks > MAX_BLOCKS:
        raise UsageError(f"a disk of {size} bytes is too large: {MAX_BLOCKS * block_size} is the most")
    return Header(
        kind=Kind.FIXED if fixed else Kind.DYNAMIC,
        disk_size=size,
        blocks=blocks,
        map_offset=HEADER_AREA,
        data_offset=data_offset_for(blocks),
        allocated=blocks if fixed else 0,
        block_size=block_size,
        image=uuid.uuid4(),
        last_change=uuid.uuid4(),
    )


def _read_block_size(text: str) -> int:
    size = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else 0
    if size < 4096 or size > 1 << 28 or size & (size - 1):
        raise UsageError(f"block_size={text}: write a power of two from 4096 to {1 << 28}")
    return size


def _write_new(file: HostFile, header: Header) -> None:
    """The map, then a barrier, then the header, which makes it an image."""
    for start in range(0, header.blocks, _PIECE // 4):
        count = min(_PIECE // 4, header.blocks - start)
        file.write(header.map_offset + 4 * start, _new_entries(header, start, count))
    file.truncate(header.data_offset + header.allocated * header.stride)
    file.flush()
    file.write(0, header.pack())
    file.flush()


def _new_entries(header: Header, start: int, count: int) -> bytes:
    if header.kind is Kind.FIXED:
        return b"".join(number.to_bytes(4, "little") for number in range(start, start + count))
    return UNALLOCATED.to_bytes(4, "little") * count


def _with_parent(header: Header, path: Path, backing: BackingReference | None, files: HostFiles) -> Header:
    """The header of an image whose parent is ``backing``.

    Raises:
        UsageError: The parent is no VDI image; the format refers to nothing else.
    """
    if backing is None:
        kind = Kind.DYNAMIC if header.kind is Kind.DIFFERENCING else header.kind
        return header.replace(kind=kind, parent=NO_UUID, parent_change=NO_UUID)
    if backing.format not in (None, VdiFormat.name):
        raise UsageError(f"the parent of a VDI image is a VDI image, not {backing.format}")
    parent = read_header(path.parent / backing.path, files)
    if parent is None:
        raise UsageError(f"the parent {backing.path} is no VDI image")
    return header.replace(
        kind=Kind.DIFFERENCING,
        parent=parent.image,
        parent_change=parent.last_change,
        comment=parent_comment(backing.path),
    )


def _check_parent(path: Path, header: Header, parent: Image | None) -> None:
    """Refuse a parent that is another image, or that changed since the child was made.

    Raises:
        CorruptImage: It is, or did.
    """
    if not isinstance(parent, VdiImage):
        return
    if parent.header.image != header.parent:
        raise CorruptImage(f"{path}: its parent {parent.path} has another UUID than {header.parent}")
    if header.parent_change not in (NO_UUID, parent.header.last_change):
        raise CorruptImage(
            f"{path}: its parent {parent.path} was changed since",
            remedy="Bring back the parent as it was; 'sublet disk rebase --unsafe' takes it as it is.",
        )
