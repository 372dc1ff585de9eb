"""Copying a range of one disk to another place of another disk."""

from __future__ import annotations

from sublet.block.contract import BlockStatus
from sublet.block.format import Image
from sublet.block.operations.copy import WINDOW, Progress, no_progress


def copy_range(
    source: Image, start: int, target: Image, place: int, size: int, *, progress: Progress = no_progress
) -> None:
    """Copy ``size`` bytes from ``start`` of ``source`` to ``place`` of ``target``.

    What the source knows to be zero is made zero in the target, and takes no storage where it can.

    Raises:
        UsageError: A range lies outside its disk.
    """
    buffer = memoryview(bytearray(WINDOW))
    done = 0
    while done < size:
        extent = source.block_status(start + done, size - done)
        if extent.status is BlockStatus.ZERO:
            target.write_zeroes(place + done, extent.size)
            done += extent.size
        else:
            # With holes that end before the window does, which are mostly small.
            piece = buffer[: size - done]
            source.readinto(start + done, piece)
            target.write(place + done, piece)
            done += len(piece)
        progress(done, size)
