"""Where ranges of a disk are stored, for copying them without the interpreter (``core.copy_pieces``)."""

from __future__ import annotations

from typing import Final, NamedTuple

from sublet.block.hostfile import HostFile, OsFile

ZERO: Final = -1
"""In place of a descriptor: zeroes."""
OTHER: Final = -2
"""In place of a descriptor: not stored as it is; ``Image.readinto`` has it."""
PARENT: Final = -3
"""In place of a descriptor, of one image alone: the parent answers."""


class Piece(NamedTuple):
    """A part of a disk."""

    fd: int
    """Descriptor of the host's file, good while the image is open; or one of the above."""
    host: int
    """Offset in that file."""
    size: int
    """Bytes."""


def is_plain(file: HostFile) -> bool:
    """Whether the host's calls alone read and write a file."""
    return type(file) is OsFile


def stored_in(file: HostFile, host: int, size: int) -> Piece:
    """``size`` bytes at ``host`` of a file; ``OTHER`` for one that is not plain."""
    return Piece(file.fd, host, size) if type(file) is OsFile else Piece(OTHER, 0, size)
