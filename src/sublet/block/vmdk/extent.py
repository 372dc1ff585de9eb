"""Extents: the pieces that a VMDK disk is put together from, and the plain ones among them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from sublet.block.contract import BlockStatus
from sublet.block.description import CheckReport, MapExtent
from sublet.block.hostfile import HostFile, refuse_readonly
from sublet.block.pieces import OTHER, PARENT, ZERO, Piece, is_plain, stored_in
from sublet.errors import CorruptImage, InternalError, UnsupportedImage, UsageError


class Extent(Protocol):
    """``size`` bytes of a disk. Offsets count from the extent's start. Any thread may call any method."""

    @property
    def size(self) -> int:
        """Bytes, a multiple of 512."""

    @property
    def file(self) -> HostFile | None:
        """What it is stored in; None for zeroes."""

    @property
    def cluster_size(self) -> int:
        """Bytes of a grain; 0 where there are none."""

    @property
    def unclean(self) -> bool:
        """Whether it says that it was not closed."""

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view``."""

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of ``view``."""

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """Make the range zero."""

    def discard(self, offset: int, size: int) -> None:
        """Give storage back where that is possible."""

    def map(self, offset: int, size: int) -> MapExtent:
        """What begins at ``offset``, of this image alone."""

    def stored(self, offset: int, size: int) -> list[Piece]:
        """Where the range is, of this image alone."""

    @property
    def can_place(self) -> bool:
        """Whether ``place`` works."""

    def place(self, offset: int, size: int) -> list[Piece]:
        """Give the range storage that the caller fills; see ``Image.place``."""

    def flush(self) -> None:
        """Put everything on stable storage."""

    def resize(self, size: int) -> None:
        """Make it ``size`` bytes; new bytes are zero. No other request may be running."""

    def check(self, report: CheckReport, *, repair: bool) -> None:
        """Look for damage. Everything is flushed."""

    def finish(self) -> None:
        """Mark it closed cleanly; called once, after the last flush."""


class FlatExtent:
    """Bytes of a file or block device as they are (``Extent``).

    Args:
        file: What holds them.
        base: Byte of the file where the extent begins.
        size: Bytes.
        fixed: Whether the storage is to stay allocated.
    """

    cluster_size = 0
    unclean = False

    def __init__(self, file: HostFile, base: int, size: int, *, fixed: bool = False) -> None:
        self.file = file
        self.size = size
        self._base = base
        self._fixed = fixed

    def readinto(self, offset: int, view: memoryview) -> None:
        """Fill ``view``."""
        self.file.readinto(self._base + offset, view)

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of ``view``."""
        self._check_writable()
        self.file.write(self._base + offset, view)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """Make the range zero."""
        self._check_writable()
        self.file.write_zeroes(self._base + offset, size, unmap=unmap and not self._fixed)

    def discard(self, offset: int, size: int) -> None:
        """Make a hole, unless the storage is to stay."""
        self._check_writable()
        if not self._fixed:
            self.file.discard(self._base + offset, size)

    def map(self, offset: int, size: int) -> MapExtent:
        """Holes of the file are zero."""
        stored = self.file.extent(self._base + offset, size)
        host = self._base + offset
        return MapExtent(offset, stored.size, stored.status, host_offset=host, file=self.file.path)

    def stored(self, offset: int, size: int) -> list[Piece]:
        """Byte for byte."""
        return [stored_in(self.file, self._base + offset, size)]

    @property
    def can_place(self) -> bool:
        """A writable file has a place for every byte."""
        return is_plain(self.file) and not self.file.readonly

    place = stored

    def flush(self) -> None:
        """Put everything on stable storage."""
        self.file.flush()

    def resize(self, size: int) -> None:
        """Make the file longer or shorter.

        Raises:
            UsageError: It is a part of a device, or begins somewhere inside a file.
        """
        if self._base:
            raise UsageError(f"{self.file.path}: an extent that begins inside its file cannot be resized")
        self.file.truncate(size)
        self.file.flush()
        self.size = size

    def check(self, report: CheckReport, *, repair: bool) -> None:
        """The file has to be long enough."""
        end = self._base + self.size
        if self.file.size() < end:
            report.error(f"{self.file.path} ends before the extent's end at {end}", repaired=repair)
            if repair:
                self.file.truncate(end)

    def finish(self) -> None:
        """Nothing marks it."""

    def _check_writable(self) -> None:
        if self.file.readonly:
            raise refuse_readonly(self.file.path)


class SelfReading(ABC):
    """What an extent says of which nobody else can read or write the data."""

    can_place = False

    @abstractmethod
    def map(self, offset: int, size: int) -> MapExtent:
        """What begins at ``offset``, of this image alone."""

    def stored(self, offset: int, size: int) -> list[Piece]:
        """Nowhere for others."""
        pieces: list[Piece] = []
        while size:
            found = self.map(offset, size)
            zero = found.status is BlockStatus.ZERO
            pieces.append(Piece((ZERO if found.present else PARENT) if zero else OTHER, 0, found.size))
            offset, size = offset + found.size, size - found.size
        return pieces

    def place(self, offset: int, size: int) -> list[Piece]:
        """Never asked for."""
        raise InternalError("this VMDK extent does not let others write")


class ZeroExtent(SelfReading):
    """Zeroes that are stored nowhere (``Extent``)."""

    file = None
    cluster_size = 0
    unclean = False

    def __init__(self, size: int) -> None:
        self.size = size

    def readinto(self, offset: int, view: memoryview) -> None:
        """Zeroes."""
        view[:] = bytes(len(view))

    def write(self, offset: int, view: memoryview) -> None:
        """Refused, but for zeroes.

        Raises:
            UsageError: There is no place for anything else.
        """
        if bytes(view).strip(b"\0"):
            raise UsageError("this part of the VMDK disk is an extent of type ZERO, which holds nothing")

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """They are there already."""

    def discard(self, offset: int, size: int) -> None:
        """Nothing."""

    def map(self, offset: int, size: int) -> MapExtent:
        """Zero."""
        return MapExtent(offset, size, BlockStatus.ZERO)

    def flush(self) -> None:
        """Nothing."""

    def resize(self, size: int) -> None:
        """Any size will do."""
        self.size = size

    def check(self, report: CheckReport, *, repair: bool) -> None:
        """Nothing can be wrong."""

    def finish(self) -> None:
        """Nothing."""


def not_alone(path: Path) -> UnsupportedImage:
    """What to raise for an extent that does not say of what disk it is."""
    return UnsupportedImage(
        f"{path} is an extent of a VMDK disk, without the disk's descriptor",
        remedy="Open the descriptor, the small .vmdk file beside it.",
    )


def check_capacity(capacity: int, wanted: int, path: Path) -> None:
    """Refuse an extent of fewer sectors than the descriptor wants.

    Raises:
        CorruptImage: It has fewer.
    """
    if wanted > capacity:
        raise CorruptImage(f"{path}: the descriptor wants {wanted} sectors of it, its header has {capacity}")
