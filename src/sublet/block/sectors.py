"""Ranges as whole sectors, for formats that keep account of sectors."""

from __future__ import annotations

from collections.abc import Callable


def zero_whole_sectors(
    offset: int,
    size: int,
    sector: int,
    *,
    write: Callable[[int, memoryview], None],
    zero: Callable[[int, int], None],
) -> None:
    """Zero a range: ``write`` its ends that are no whole sectors, ``zero`` what lies between.

    Args:
        offset, size: The range in bytes, not empty.
        sector: Bytes of a sector.
        write: Called with an offset and zeroes.
        zero: Called with an offset and a number of bytes, both multiples of ``sector``.
    """
    start, end = -(-offset // sector) * sector, (offset + size) // sector * sector
    if start >= end:
        write(offset, memoryview(bytes(size)))
        return
    if offset < start:
        write(offset, memoryview(bytes(start - offset)))
    zero(start, end - start)
    if end < offset + size:
        write(end, memoryview(bytes(offset + size - end)))
