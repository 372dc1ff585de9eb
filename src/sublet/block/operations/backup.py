"""Incremental backup: what a dirty bitmap says has changed, as an overlay on the last backup."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sublet.block.images import create_image, open_image
from sublet.block.operations.copy import WINDOW, Progress, no_progress

if TYPE_CHECKING:
    from sublet.block.qcow2.image import Qcow2Image


def back_up_increment(
    image: Qcow2Image,
    path: Path,
    *,
    bitmap: str,
    previous: Path,
    previous_format: str | None = None,
    progress: Progress = no_progress,
) -> int:
    """Write what is dirty into a new QCOW2 overlay at ``path`` on the ``previous`` backup.

    The chain from ``path`` down then holds what the image holds. The bitmap begins anew only when the
    increment is on stable storage, so a failure leaves it as it was, and nothing at ``path``.

    Returns:
        Bytes that were dirty.

    Raises:
        UsageError: There is no such bitmap, or a crash made it worthless.
        HostRefused: ``path`` exists, or cannot be written.
    """
    ranges = image.dirty_ranges(bitmap)
    create_image(path, image.size, format="qcow2", backing=previous, backing_format=previous_format)
    total = sum(size for _, size in ranges)
    done = 0
    try:
        with open_image(path, folders=[previous.resolve().parent]) as target:
            for offset, size in ranges:
                for start in range(offset, offset + size, WINDOW):
                    piece = image.read(start, min(WINDOW, offset + size - start))
                    target.write(start, piece)
                    done += len(piece)
                    progress(done, total)
            target.flush()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    image.clear_bitmap(bitmap)
    return total
