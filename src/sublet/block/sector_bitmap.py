"""Bitmaps of a bit per sector: which sectors of a block an image holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

BitOrder = Literal["big", "little"]
"""Whether the first sector is a byte's most (``big``) or least significant bit."""


def runs(bitmap: bytes | bytearray, first: int, count: int, order: BitOrder) -> Iterator[tuple[bool, int]]:
    """Runs of equal bits.

    Args:
        bitmap: The bitmap.
        first: The first sector.
        count: Sectors; the runs yielded add up to it.
        order: Bit order.

    Yields:
        Whether the run's bits are set, and its length in sectors.
    """
    start, end = first // 8, -(-(first + count) // 8)
    digits = f"{int.from_bytes(bitmap[start:end], order):0{8 * (end - start)}b}"
    bits = digits if order == "big" else digits[::-1]
    at, stop = first - 8 * start, first - 8 * start + count
    while at < stop:
        bit = bits[at]
        end = bits.find("0" if bit == "1" else "1", at, stop)
        end = stop if end < 0 else end
        yield bit == "1", end - at
        at = end


def set_bits(bitmap: bytearray, first: int, count: int, order: BitOrder) -> None:
    """Set the bits of ``count`` sectors from ``first`` on."""
    if count <= 0:
        return
    start, end = first // 8, -(-(first + count) // 8)
    width, skip = 8 * (end - start), first - 8 * start
    low = skip if order == "little" else width - skip - count
    mask = ((1 << count) - 1) << low
    bits = int.from_bytes(bitmap[start:end], order) | mask
    bitmap[start:end] = bits.to_bytes(end - start, order)
