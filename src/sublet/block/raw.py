"""Raw images: byte n of the disk is byte n of a file or block device.

A file is opened as raw only because someone said that it is raw; its content is never guessed at, because a
guest writes that content (a raw disk on which a guest wrote a QCOW2 header must stay a raw disk).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from sublet.block.chain import Chain
from sublet.block.contract import Extent
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
    ImageFormat,
    read_options,
)
from sublet.block.hostfile import HostFile, HostFiles, descriptor
from sublet.block.pieces import Piece, is_plain, stored_in
from sublet.core import InPlace
from sublet.errors import ImageError, UsageError


class RawImage(Image):
    """A raw image, open until ``close``. Threads need no lock: every access is one positioned call.

    Args:
        path: A regular file or a block device.
        readonly: Open for reading only.
        chain: How to open it; by default as the host's file.
        allow_empty: Take a file without a sector for a disk of no bytes.

    Raises:
        HostRefused: It cannot be opened, or another process has it locked.
        ImageError: It is neither file nor block device, or is empty.
    """

    format = "raw"

    def __init__(
        self, path: Path, *, readonly: bool = False, chain: Chain | None = None, allow_empty: bool = False
    ) -> None:
        self._file = (chain or Chain.start(path)).open_file(path, readonly=readonly)
        try:
            size = _measure(self._file, allow_empty=allow_empty)
        except BaseException:
            self._file.close()
            raise
        super().__init__(path, size, readonly=readonly, block_size=self._file.block_size)
        self.in_place: InPlace = InPlace.flat(descriptor(self._file), size, not readonly)

    @property
    def file(self) -> HostFile:
        """The host's file."""
        return self._file

    def block_status(self, offset: int, size: int) -> Extent:
        """Holes are zero; all else is data."""
        self._check(offset, size)
        return self._file.extent(offset, size)

    def info(self) -> ImageInfo:
        """Sizes."""
        return ImageInfo(
            self.format,
            self.path,
            self.size,
            self._file.size(),
            self._file.allocated(),
            block_size=self.block_size,
        )

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

    def _resize(self, size: int) -> None:
        self._file.truncate(size)
        self._file.flush()
        self.in_place.shut()
        self._size = size
        self.in_place.resize(size)
        self.in_place.open()

    def _check_image(self, *, repair: bool) -> CheckReport:
        return CheckReport()

    def _close(self) -> None:
        self._file.close()


def _measure(file: HostFile, *, allow_empty: bool) -> int:
    """Bytes of the disk: an odd tail is filled up with zeroes, since dropping it would lose data."""
    size = -(-file.size() // SECTOR) * SECTOR
    if not size and not allow_empty:
        raise ImageError(f"the disk {file.path} is smaller than a sector of {SECTOR} bytes")
    return size


class RawFormat:
    """Files without structure (``ImageFormat``)."""

    name = "raw"
    extensions = (".raw", ".img", ".iso", ".bin", ".dd")
    options: tuple[CreateOption, ...] = (
        CreateOption("preallocation", "off", "off: sparse; full: write zeroes, so that space is there"),
    )

    def probe(self, head: bytes, tail: bytes, size: int) -> bool:
        """Anything is raw, so nothing says that it is."""
        return False

    def open(self, path: Path, *, readonly: bool, chain: Chain, check: bool = False) -> Image:
        """Open; a disk may be of no bytes."""
        return RawImage(path, readonly=readonly, chain=chain, allow_empty=True)

    def create(
        self,
        path: Path,
        size: int,
        *,
        options: Mapping[str, str],
        backing: BackingReference | None,
        files: HostFiles,
    ) -> None:
        """Create a sparse file."""
        values = read_options(self.name, self.options, options)
        if backing is not None:
            raise UsageError("raw images have no parent")
        if values["preallocation"] not in ("off", "full"):
            raise UsageError(f"preallocation={values['preallocation']}: write off or full")
        file = files.create(path)
        try:
            file.truncate(size)
            if values["preallocation"] == "full":
                file.write_zeroes(0, size, unmap=False)
            file.close()
        except BaseException:
            file.close()
            files.remove(path)
            raise


FORMAT: Final[ImageFormat] = RawFormat()
