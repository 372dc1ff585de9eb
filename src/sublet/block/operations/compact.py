"""Giving storage back that holds nothing but zeroes."""

from __future__ import annotations

from sublet.block.contract import BlockStatus
from sublet.block.format import Image
from sublet.block.operations.copy import WINDOW, Progress, no_progress

_GRANULARITY = 65536


def compact(image: Image, *, progress: Progress = no_progress) -> int:
    """Free every cluster of the image that holds zeroes alone, in place.

    Snapshots and parents stay as they are, and a crash at any point loses nothing. The file gets holes; it
    gets shorter only by converting it.

    Returns:
        Bytes of storage given back, as the host counts them.
    """
    before = image.info().allocated
    step = image.info().cluster_size or _GRANULARITY
    offset = 0
    while offset < image.size:
        own = image.own_map(offset, image.size - offset)
        size = own.size
        if own.present and own.status is BlockStatus.DATA and not own.compressed:
            size = min(size, WINDOW - offset % WINDOW)
            _free_zeroes(image, offset, image.read(offset, size), step)
        offset += size
        progress(offset, image.size)
    image.flush()
    return max(0, before - image.info().allocated)


def _free_zeroes(image: Image, offset: int, data: bytes, step: int) -> None:
    zeroes = bytes(min(step, len(data)))
    start = -offset % step
    for position in range(start, len(data), step):
        size = min(step, len(data) - position)
        if data.startswith(zeroes[:size], position):
            image.write_zeroes(offset + position, size, unmap=True)
