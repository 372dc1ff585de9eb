"""Images whose bytes lie in one host file as they are: raw ones, and fixed VHDs.

Threads need no lock: every access is one positioned call.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sublet.block.description import SECTOR, MapExtent
from sublet.block.format import Image
from sublet.block.hostfile import HostFile, descriptor
from sublet.block.pieces import Piece, is_plain, stored_in
from sublet.core import InPlace


class FlatImage(Image):
    """Byte n of the disk is byte n of a file, which may go on behind the disk's end.

    Args:
        path: The image's.
        file: The file; closed with the image.
        size: Bytes of the disk.
        readonly, block_size: See ``Image``.
    """

    def __init__(
        self, path: Path, file: HostFile, size: int, *, readonly: bool, block_size: int = SECTOR
    ) -> None:
        super().__init__(path, size, readonly=readonly, block_size=block_size)
        self._file = file
        self.in_place: InPlace = InPlace.flat(descriptor(file), size, not readonly)

    def _readinto(self, offset: int, view: memoryview) -> None:
        self._file.readinto(offset, view)

    def _write(self, offset: int, view: memoryview) -> None:
        self._file.write(offset, view)

    def _write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        self._file.write_zeroes(offset, size, unmap=unmap)

    def _discard(self, offset: int, size: int) -> None:
        self._file.discard(offset, size)

    def _map(self, offset: int, size: int) -> MapExtent:
        extent = self._file.extent(offset, size)
        return MapExtent(offset, extent.size, extent.status, host_offset=offset, file=self.path)

    def _stored(self, offset: int, size: int) -> Iterable[Piece]:
        return (stored_in(self._file, offset, size),)

    @property
    def can_place(self) -> bool:
        """A file has a place for every byte."""
        return is_plain(self._file)

    _place = _stored

    def _flush(self) -> None:
        self._file.flush()

    def _close(self) -> None:
        self._file.close()
