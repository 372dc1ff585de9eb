"""Comparing what two images hold."""

from __future__ import annotations

from dataclasses import dataclass

from sublet.block.contract import BlockStatus
from sublet.block.format import Image
from sublet.block.operations.copy import WINDOW, Progress, no_progress


@dataclass(frozen=True)
class Difference:
    """Where two images differ first."""

    offset: int
    reason: str


def compare(
    first: Image, second: Image, *, strict: bool = False, progress: Progress = no_progress
) -> Difference | None:
    """Find the first difference; a shorter disk counts as followed by zeroes unless ``strict``."""
    if strict and first.size != second.size:
        sizes = f"{first.size} and {second.size} bytes"
        return Difference(min(first.size, second.size), f"the sizes differ: {sizes}")
    total = max(first.size, second.size)
    one, other = bytearray(WINDOW), bytearray(WINDOW)
    offset = 0
    while offset < total:
        size = _both_zero(first, second, offset, total - offset)
        if not size:
            size = min(WINDOW - offset % WINDOW, total - offset)
            _read(first, offset, memoryview(one)[:size])
            _read(second, offset, memoryview(other)[:size])
            # Whole buffers compare fastest; behind a shorter window's end a difference is no matter.
            if one != other and (place := _differs(one[:size], other[:size])) is not None:
                return Difference(offset + place, "the contents differ")
        offset += size
        progress(offset, total)
    return None


def _both_zero(first: Image, second: Image, offset: int, size: int) -> int:
    """How many bytes from ``offset`` both images know to be zero."""
    for image in (first, second):
        if offset >= image.size:
            continue
        extent = image.block_status(offset, min(size, image.size - offset))
        if extent.status is not BlockStatus.ZERO:
            return 0
        # Past a shorter image's end zeroes go on.
        if offset + extent.size < image.size:
            size = min(size, extent.size)
    return size


def _read(image: Image, offset: int, view: memoryview) -> None:
    """Fill ``view``, with zeroes past the image's end."""
    inside = max(0, min(len(view), image.size - offset))
    if inside:
        image.readinto(offset, view[:inside])
    if inside < len(view):
        view[inside:] = bytes(len(view) - inside)


def _differs(one: bytearray, other: bytearray) -> int | None:
    """Position of the first difference, found by halving."""
    if one == other:
        return None
    low, high = 0, len(one)
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
