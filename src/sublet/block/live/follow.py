"""Keeping a copy the same as a disk that the guest goes on writing to.

One pass from the disk's start to its end. Below the cursor, source and copy hold the same, but for writes
that are under way: whatever a guest writes there goes to both. At and above it, only the source is written.
A window is copied, and the cursor moved past it, while writes to the window wait; so no write can slip
between. The pass ends however fast the guest writes.
"""

from __future__ import annotations

from collections.abc import Callable

from sublet.block.contract import BlockStatus
from sublet.block.description import MapExtent
from sublet.block.format import Image
from sublet.block.hostfile import Bytes
from sublet.block.live.job import WINDOW, ZERO_WINDOW, Job
from sublet.errors import SubletError

Select = Callable[[Image, int, int], MapExtent]
"""What of (image, offset, size) is to be copied: see ``mirrored`` and ``own``."""


def mirrored(image: Image, offset: int, size: int) -> MapExtent:
    """All that the disk holds, for a copy that is zero so far."""
    extent = image.map(offset, size)
    present = extent.status is not BlockStatus.ZERO
    return MapExtent(offset, extent.size, extent.status, present=present)


def own(image: Image, offset: int, size: int) -> MapExtent:
    """What the topmost image stores, zeroes too, for a copy into its parent."""
    return image.own_map(offset, size)


class Follower:
    """Copies a drive into ``copy``, and follows the guest's writes (``drive.Watcher``).

    Args:
        job: Whose drive; its rate limits the pass.
        copy: Reads as zeroes, or as what ``select`` leaves out.
    """

    def __init__(self, job: Job, copy: Image, select: Select = mirrored) -> None:
        self._job = job
        self._drive = job.drive
        self._copy = copy
        self._select = select
        self._cursor = 0
        self._error: Exception | None = None
        self.copied = 0
        """Bytes that the pass has copied."""

    def run(self) -> None:
        """Make the pass, and go on following. Precondition: this is the drive's watcher.

        Raises:
            WrongMoment: The job is to stop.
            OSError, SubletError: The copy cannot be written.
        """
        while self._cursor < self._drive.size:
            self.require_same()
            copied = self._advance()
            self.copied += copied
            self._job.step(self._cursor, self._drive.size, copied)

    def require_same(self) -> None:
        """Raise what kept a guest's write from the copy."""
        if self._error is not None:
            raise self._error

    def _advance(self) -> int:
        """Move the cursor, past a window of data or past much that needs no copying; bytes copied."""
        left = self._drive.size - self._cursor
        glance = self._select(self._drive.image, self._cursor, min(left, ZERO_WINDOW))
        span = glance.size if not glance.present else min(left, WINDOW)
        with self._drive.hold(self._cursor, span):
            end, copied = self._cursor + span, 0
            while self._cursor < end:
                extent = self._select(self._drive.image, self._cursor, end - self._cursor)
                if extent.present and self._cursor + WINDOW < end:
                    break  # Data has come since the glance: take it in windows, not all at once.
                copied += self._take(extent)
                self._cursor += extent.size
        return copied

    def _take(self, extent: MapExtent) -> int:
        if not extent.present:
            return 0
        if extent.status is BlockStatus.ZERO:
            self._copy.write_zeroes(extent.offset, extent.size)
            return 0
        self._copy.write(extent.offset, self._drive.image.read(extent.offset, extent.size))
        return extent.size

    def before_write(self, offset: int, size: int) -> None:
        """Nothing: the copy follows."""

    def after_write(self, offset: int, size: int, data: Bytes | None) -> None:
        """Do the same below the cursor. A copy that fails ends the job, never the guest's write."""
        size = min(size, self._cursor - offset)
        if size <= 0 or self._error is not None:
            return
        try:
            if data is None:
                self._copy.write_zeroes(offset, size)
            else:
                self._copy.write(offset, memoryview(data).cast("B")[:size])
        except (OSError, SubletError) as error:
            self._error = error
