"""Filling a new image with what another holds: the formats say where, the core reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from sublet.block.contract import BlockStatus
from sublet.block.description import MapExtent
from sublet.block.format import Image
from sublet.block.pieces import OTHER, Piece
from sublet.core import copy_pieces

_BATCH: Final = 512 << 20
"""Bytes of the disk for one call of the core, up to a multiple of it.

Each call takes new memory for what it reads ahead, which the host has to find and clear.
"""


def fill(
    source: Image, target: Image, *, granularity: int, progress: Callable[[int, int], None]
) -> Iterator[MapExtent]:
    """Copy what ``source`` has stored as it is to the same offsets of ``target``, without the interpreter.

    Nothing that is zero is copied, as the target reads as zeroes.

    Args:
        target: Just made, at least as large, and lost on failure; its ``can_place`` holds.
        granularity: Bytes of the blocks that are looked at, a power of two up to 1 MiB.

    Yields:
        What is left: data that only the source itself can read.
    """
    offset = 0
    while offset < source.size:
        extent = source.map(offset, source.size - offset)
        if extent.status is BlockStatus.ZERO:
            offset += extent.size
            continue
        size = min(_BATCH - offset % _BATCH, source.size - offset)
        pieces = source.stored(offset, size)
        if any(piece.fd >= 0 for piece in pieces):
            copy_pieces(offset, pieces, granularity, target.place)
        yield from _others(offset, pieces)
        offset += size
        progress(offset, source.size)


def _others(offset: int, pieces: list[Piece]) -> Iterator[MapExtent]:
    for piece in pieces:
        if piece.fd == OTHER:
            yield MapExtent(offset, piece.size, BlockStatus.DATA)
        offset += piece.size
