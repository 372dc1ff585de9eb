"""What every disk format implements: ``ImageFormat`` opens and creates, ``Image`` is what it opens.

To add a format, make a folder with a ``FORMAT: ImageFormat`` in its ``__init__`` and a line in
``registry.FORMATS``. An image subclasses ``Image`` and implements the methods that begin with an underscore;
the base class has checked ranges, read-only and closed before it calls them.

Metadata must be ordered with ``HostFile.flush`` so that after a crash at any point the image opens and checks
clean, but for leaked space, and holds all that was flushed.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from sublet.block.contract import BlockStatus, Extent
from sublet.block.description import (
    SECTOR,
    BackingReference,
    CheckReport,
    ImageInfo,
    MapExtent,
    Snapshot,
)
from sublet.block.hostfile import Bytes, HostFiles, refuse_readonly
from sublet.block.pieces import OTHER, PARENT, ZERO, Piece
from sublet.core import InPlace
from sublet.errors import InternalError, UsageError, WrongMoment

if TYPE_CHECKING:
    from sublet.block.chain import Chain

HEAD_SIZE: Final = 4096
"""Bytes from a file's start that ``probe`` sees."""
TAIL_SIZE: Final = 512
"""Bytes up to a file's end that ``probe`` sees."""


@dataclass(frozen=True)
class CreateOption:
    """An option of ``create``, as in ``-o cluster_size=64K``."""

    name: str
    default: str
    help: str


class Image(ABC):
    """An open disk image (``block.BlockDevice``), of any format.

    Subclasses set ``_size`` when the disk is resized. ``_lock`` is theirs to use.
    """

    in_place: InPlace | None = None
    """The core's way past the format, which is tried first; shut for good when the image closes."""
    format: str
    sequential = False
    """Whether data can only be written in order, from the disk's start to its end, and once."""

    def __init__(self, path: Path, size: int, *, readonly: bool, block_size: int = SECTOR) -> None:
        self.path = path
        self._size = size
        self._readonly = readonly
        self._block_size = block_size
        self._closed = False
        self._lock = threading.RLock()

    @property
    def size(self) -> int:
        """Bytes of the disk, a multiple of 512."""
        return self._size

    @property
    def block_size(self) -> int:
        """512 or 4096 bytes."""
        return self._block_size

    @property
    def readonly(self) -> bool:
        """Whether writes are refused."""
        return self._readonly

    @property
    def backing(self) -> Image | None:
        """The open parent."""
        return None

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        if self.in_place is not None:
            data = self.in_place.read(offset, size)
            if data is not None:
                return data
        self._check(offset, size)
        buffer = bytearray(size)
        self._readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``."""
        if self.in_place is not None and self.in_place.readinto(offset, buffer):
            return
        view = memoryview(buffer).cast("B")
        self._check(offset, len(view))
        if view:
            self._readinto(offset, view)

    def write(self, offset: int, data: Bytes) -> None:
        """Write all of ``data``."""
        if self.in_place is not None and self.in_place.write(offset, data):
            return
        view = memoryview(data).cast("B")
        self._check_writable(offset, len(view))
        if view:
            self._write(offset, view)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes; with ``unmap`` its storage may be given back."""
        self._check_writable(offset, size)
        if size:
            self._write_zeroes(offset, size, unmap=unmap)

    def discard(self, offset: int, size: int) -> None:
        """A hint that the content is no longer needed; formats may ignore it."""
        self._check_writable(offset, size)
        if size:
            self._discard(offset, size)

    def write_compressed(self, offset: int, data: Bytes) -> None:
        """Write whole clusters compressed, where the format can; otherwise as they are."""
        self.write(offset, data)

    def block_status(self, offset: int, size: int) -> Extent:
        """The extent that begins at ``offset``, cut to ``size``, seen through the whole chain."""
        extent = self.map(offset, size)
        return Extent(offset, extent.size, extent.status)

    def map(self, offset: int, size: int) -> MapExtent:
        """Where the range that begins at ``offset`` is stored, cut to ``size``, through the whole chain."""
        self._check(offset, size)
        if not size:
            return MapExtent(offset, 0, BlockStatus.ZERO, present=False)
        own = self._map(offset, size)
        parent = self.backing
        if own.present or parent is None:
            return own
        if offset >= parent.size:
            return own
        below = parent.map(offset, min(own.size, parent.size - offset))
        return MapExtent(
            offset=offset,
            size=below.size,
            status=below.status,
            present=below.present,
            depth=below.depth + 1,
            host_offset=below.host_offset,
            file=below.file,
            compressed=below.compressed,
        )

    def own_map(self, offset: int, size: int) -> MapExtent:
        """As ``map``, of this image alone: not present where the parent would answer."""
        self._check(offset, size)
        return self._map(offset, size) if size else MapExtent(offset, 0, BlockStatus.ZERO, present=False)

    def stored(self, offset: int, size: int) -> list[Piece]:
        """Where the range is stored, through the whole chain, in pieces for ``core.copy_pieces``."""
        self._check(offset, size)
        found: list[Piece] = []
        for piece in self._stored(offset, size) if size else ():
            if piece.fd == PARENT:
                found += self._stored_below(offset, piece.size)
            else:
                found.append(piece)
            offset += piece.size
        return found

    def _stored_below(self, offset: int, size: int) -> list[Piece]:
        """Where the parent has a range: nowhere without one, and past the end of a shorter one."""
        parent = self.backing
        inside = 0 if parent is None else max(0, min(size, parent.size - offset))
        pieces = parent.stored(offset, inside) if parent is not None else []
        return [*pieces, Piece(ZERO, 0, size - inside)] if inside < size else pieces

    @property
    def can_place(self) -> bool:
        """Whether ``place`` works: the image has no parent, and the host's calls alone can write its data."""
        return False

    def place(self, ranges: list[tuple[int, int]]) -> list[Piece]:
        """Give ranges, (offset, bytes) each, storage that the caller is going to fill.

        For an image that was just made and that nobody has a use for unless all of it succeeds: what has not
        been filled yet is referred to already. Storage that is not filled reads as zeroes.

        Returns:
            Pieces of the image's files, which cover the ranges in order.
        """
        pieces: list[Piece] = []
        for offset, size in ranges:
            self._check_writable(offset, size)
            pieces += self._place(offset, size)
        return pieces

    def extents(self) -> Iterator[MapExtent]:
        """All of ``map``, from the disk's start to its end."""
        offset = 0
        while offset < self.size:
            extent = self.map(offset, self.size - offset)
            yield extent
            offset += extent.size

    def flush(self) -> None:
        """Return once everything written before is on stable storage."""
        self._check(0, 0)
        if not self._readonly:
            self._flush()

    def resize(self, size: int) -> None:
        """Make the disk ``size`` bytes, a multiple of 512; new bytes are zero, cut ones are lost.

        Raises:
            UsageError: The format cannot, or the size is none.
        """
        self._check_writable(0, 0)
        if size < 0 or size % SECTOR:
            raise UsageError(f"a disk of {size} bytes: the size must be a multiple of {SECTOR}")
        if size != self._size:
            self._resize(size)

    def check(self, *, repair: bool = False) -> CheckReport:
        """Look for damage; with ``repair`` mend what can be mended without losing data.

        An image that is opened with ``check=True`` may be too damaged for anything else.
        """
        if repair:
            self._check_writable(0, 0)
        return self._check_image(repair=repair)

    def snapshots(self) -> tuple[Snapshot, ...]:
        """The internal snapshots, oldest first."""
        return ()

    def create_snapshot(self, name: str) -> Snapshot:
        """Keep the disk as it is now, under a name of its own."""
        raise UsageError(f"{self.format} images have no internal snapshots")

    def revert_snapshot(self, name: str) -> None:
        """Make the disk what it was then."""
        raise UsageError(f"{self.format} images have no internal snapshots")

    def delete_snapshot(self, name: str) -> None:
        """Forget the snapshot and free what only it holds."""
        raise UsageError(f"{self.format} images have no internal snapshots")

    def set_backing(self, backing: BackingReference | None) -> None:
        """Name another parent, without looking at what either holds."""
        raise UsageError(f"{self.format} images cannot change their parent")

    def make_empty(self) -> None:
        """Let the parent answer for everything again; without a cheap way to, nothing happens."""
        self._check_writable(0, 0)

    @abstractmethod
    def info(self) -> ImageInfo:
        """What ``sublet disk info`` shows."""

    def close(self) -> None:
        """Flush, mark clean, unlock and close, parents included. Idempotent."""
        if not self._closed:
            try:
                if not self._readonly:
                    self._flush()
            finally:
                self._closed = True
                if self.in_place is not None:
                    self.in_place.shut()
                self._close()

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What a format implements. Ranges lie inside the disk and are not empty.

    @abstractmethod
    def _readinto(self, offset: int, view: memoryview) -> None: ...

    @abstractmethod
    def _write(self, offset: int, view: memoryview) -> None: ...

    @abstractmethod
    def _write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None: ...

    @abstractmethod
    def _discard(self, offset: int, size: int) -> None:
        """Nothing, where the format frees no storage."""

    @abstractmethod
    def _map(self, offset: int, size: int) -> MapExtent:
        """``map`` of this image alone, without its parent."""

    def _stored(self, offset: int, size: int) -> Iterable[Piece]:
        """``stored`` of this image alone."""
        return (Piece(OTHER, 0, size),)

    def _place(self, offset: int, size: int) -> Iterable[Piece]:
        """``place`` one range. Precondition: ``can_place``."""
        raise InternalError(f"{self.format} images do not let others write")

    @abstractmethod
    def _flush(self) -> None: ...

    def _resize(self, size: int) -> None:
        raise UsageError(f"{self.format} images cannot be resized")

    @abstractmethod
    def _check_image(self, *, repair: bool) -> CheckReport: ...

    @abstractmethod
    def _close(self) -> None:
        """Close files and parents; called once, after the last flush, also when that failed."""

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self._size:
            raise UsageError(f"{size} bytes at {offset} lie outside a disk of {self._size} bytes")
        if self._closed:
            raise WrongMoment(f"{self.path} is closed")

    def _check_writable(self, offset: int, size: int) -> None:
        self._check(offset, size)
        if self._readonly:
            raise refuse_readonly(self.path)


def read_parent(parent: Image | None, offset: int, view: memoryview) -> None:
    """Fill ``view`` with what the parent holds: zeroes without one, and past the end of a shorter one."""
    inside = 0 if parent is None else max(0, min(len(view), parent.size - offset))
    if parent is not None and inside:
        parent.readinto(offset, view[:inside])
    if inside < len(view):
        view[inside:] = bytes(len(view) - inside)


class ImageFormat(Protocol):
    """A disk format: knows its images when it sees them, opens and creates them."""

    @property
    def name(self) -> str:
        """As users write it."""

    @property
    def extensions(self) -> tuple[str, ...]:
        """Lower-case file name endings that say that a file is of this format, as in ``.qcow2``."""

    @property
    def options(self) -> tuple[CreateOption, ...]:
        """What ``create`` takes."""

    def probe(self, head: bytes, tail: bytes, size: int) -> bool:
        """Whether a file of ``size`` bytes is of this format.

        Args:
            head: Its first ``HEAD_SIZE`` bytes, fewer for a smaller file.
            tail: Its last ``TAIL_SIZE`` bytes, fewer for a smaller file.
        """

    def open(self, path: Path, *, readonly: bool, chain: Chain, check: bool = False) -> Image:
        """Open an image and its parents.

        Args:
            readonly: Refuse writes and write nothing, not even a repair.
            chain: Opens host files (``chain.files``) and parents (``chain.open_parent``).
            check: Open it for ``check`` alone: tolerate what check reports, open no parent.

        Raises:
            HostRefused: A file cannot be opened, or is in use.
            CorruptImage: Damaged; the message names the field.
            UnsupportedImage: It uses a feature that we do not read.
        """

    def create(
        self,
        path: Path,
        size: int,
        *,
        options: Mapping[str, str],
        backing: BackingReference | None,
        files: HostFiles,
    ) -> None:
        """Create an image that reads as zeroes, or as its parent. On failure nothing is left behind.

        Args:
            size: Bytes, a multiple of 512.
            options: Values as text, checked with ``read_options``.
            backing: Already checked by the caller to exist and to be of that format.

        Raises:
            UsageError: An option or the size is none that the format knows.
            HostRefused: The file exists, or cannot be written.
        """


def read_options(
    format_name: str, known: tuple[CreateOption, ...], given: Mapping[str, str]
) -> dict[str, str]:
    """Defaults overridden by what was given.

    Raises:
        UsageError: An option that the format does not have.
    """
    values = {option.name: option.default for option in known}
    for name, value in given.items():
        if name not in values:
            names = ", ".join(values) or "none"
            raise UsageError(f"{format_name} has no option {name!r}; it has: {names}")
        values[name] = value
    return values


def read_flag(name: str, value: str) -> bool:
    """``on`` or ``off``.

    Raises:
        UsageError: Anything else.
    """
    if value not in ("on", "off"):
        raise UsageError(f"{name}={value}: write on or off")
    return value == "on"
