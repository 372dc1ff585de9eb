"""The block image behind a drive, with its failures turned into what a drive reports."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sublet.block import BlockDevice
from sublet.devices.storage.taskfile import ABRT, UNC, AtaError
from sublet.errors import SubletError
from sublet.hw import GuestMemory

_LOG = logging.getLogger(__name__)

Segment = tuple[int, int]
"""Guest-physical address and bytes."""

SECTOR = 512
PIECE = 1 << 20
"""Bytes moved at once: bounds the host memory that one command holds."""


class Medium:
    """An image; ranges are the caller's to check. Any thread.

    Args:
        image: Served until ``close``, which closes it.
    """

    def __init__(self, image: BlockDevice) -> None:
        self._image = image
        self._reported = False

    @property
    def size(self) -> int:
        """Bytes."""
        return self._image.size

    @property
    def block_size(self) -> int:
        """The image's logical block, 512 or 4096 bytes."""
        return self._image.block_size

    @property
    def readonly(self) -> bool:
        """Whether writes fail."""
        return self._image.readonly

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes.

        Raises:
            AtaError: The host failed: UNC at the first sector.
        """
        with self._failing_at(offset):
            return self._image.read(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Write all of ``data``.

        Raises:
            AtaError: The host failed (UNC), or the image is read-only (ABRT).
        """
        if self.readonly:
            raise AtaError(ABRT)
        with self._failing_at(offset):
            self._image.write(offset, data)

    def move(self, memory: GuestMemory, offset: int, segments: list[Segment], *, to_disk: bool) -> bool:
        """Let the core move bytes between memory and image; False where ``read`` or ``write`` has to."""
        places = self._image.in_place
        return places is not None and places.transfer_segments(memory, offset, segments, to_disk)

    def flush(self) -> None:
        """Return once everything written is on stable storage."""
        with self._failing_at(0):
            self._image.flush()

    def discard(self, offset: int, size: int) -> None:
        """A hint that the range is no longer needed."""
        with self._failing_at(offset):
            self._image.discard(offset, size)

    @contextmanager
    def _failing_at(self, offset: int) -> Iterator[None]:
        try:
            yield
        except (OSError, SubletError) as error:
            self._report(error)
            raise AtaError(UNC, offset // SECTOR) from error

    def _report(self, error: Exception) -> None:
        """Say why the guest sees I/O errors: once, since a guest may repeat the command for ever."""
        if not self._reported:
            self._reported = True
            _LOG.warning("a disk command failed, the guest sees an I/O error: %s", error)

    def close(self) -> None:
        """Flush and close the image."""
        self._image.close()
