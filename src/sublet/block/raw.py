"""Raw images: byte n of the disk is byte n of a file or block device.

A file is opened as raw only because someone said that it is raw; its content is never guessed at, because a
guest writes that content (a raw disk on which a guest wrote a QCOW2 header must stay a raw disk).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sublet.block.chain import Chain
from sublet.block.contract import Extent
from sublet.block.description import (
    SECTOR,
    BackingReference,
    CheckReport,
    ImageInfo,
)
from sublet.block.flat import FlatImage
from sublet.block.format import (
    CreateOption,
    Image,
    ImageFormat,
    read_options,
)
from sublet.block.hostfile import HostFile, HostFiles, new_file
from sublet.errors import ImageError, UsageError


class RawImage(FlatImage):
    """A raw image, open until ``close``.

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
        file = (chain or Chain.start(path)).open_file(path, readonly=readonly)
        try:
            size = _measure(file, allow_empty=allow_empty)
        except BaseException:
            file.close()
            raise
        super().__init__(path, file, size, readonly=readonly, block_size=file.block_size)

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

    def _resize(self, size: int) -> None:
        self._file.truncate(size)
        self._file.flush()
        self.in_place.shut()
        self._size = size
        self.in_place.resize(size)
        self.in_place.open()

    def _check_image(self, *, repair: bool) -> CheckReport:
        return CheckReport()


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
        with new_file(files, path) as file:
            file.truncate(size)
            if values["preallocation"] == "full":
                file.write_zeroes(0, size, unmap=False)


FORMAT: Final[ImageFormat] = RawFormat()
