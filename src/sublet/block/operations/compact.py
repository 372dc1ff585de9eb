"""Giving storage back that holds nothing but zeroes."""

from __future__ import annotations

from sublet.block.contract import BlockStatus
from sublet.block.format import Image
from sublet.block.operations.copy import WINDOW, Progress, no_progress, zero_runs

_GRANULARITY = 65536


def compact(image: Image, *, progress: Progress = no_progress) -> int:
    """Free every cluster of the image that holds zeroes alone, in place.

    Snapshots and parents stay as they are, and a crash at any point loses nothing. The file gets holes; it
    gets shorter only by converting it.

    Returns:
        Bytes of storage given back, as the host counts them.
    """
    before = image.info().allocated
    step = min(image.info().cluster_size or _GRANULARITY, WINDOW)
    buffer = bytearray(WINDOW)
    offset = 0
    while offset < image.size:
        own = image.own_map(offset, image.size - offset)
        if own.present and own.status is BlockStatus.DATA and not own.compressed:
            for start in range(offset - offset % WINDOW, offset + own.size, WINDOW):
                first = max(start, offset)
                _free_zeroes(image, first, min(start + WINDOW, offset + own.size) - first, step, buffer)
                progress(first, image.size)
        offset += own.size
    image.flush()
    progress(image.size, image.size)
    return max(0, before - image.info().allocated)


def _free_zeroes(image: Image, offset: int, size: int, step: int, buffer: bytearray) -> None:
    """Free the blocks of ``step`` bytes that lie in a range as a whole and are zero."""
    image.readinto(offset, memoryview(buffer)[:size])
    for start, end, zero in zero_runs(buffer, offset, size, step):
        first = -(-(offset + start) // step) * step
        if zero and first < offset + end:
            image.write_zeroes(first, offset + end - first, unmap=True)
