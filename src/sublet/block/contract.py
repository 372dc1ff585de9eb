"""The contract of every disk image, whatever its format."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from sublet.core import InPlace


class BlockStatus(enum.Enum):
    """What a range of an image holds."""

    DATA = "data"
    ZERO = "zero"


@dataclass(frozen=True)
class Extent:
    """A half-open range of one status, in bytes."""

    offset: int
    size: int
    status: BlockStatus


class BlockDevice(Protocol):
    """A disk of ``size`` bytes. Any thread may call any method, also concurrently.

    Offsets and sizes are bytes, relative to the disk's start. All methods but ``close`` raise
    ``UsageError`` for a range outside the disk, ``OSError`` when the host fails, and writing ones
    ``WrongMoment`` on a read-only image. What ``write`` took survives a host's crash only after ``flush``.
    """

    @property
    def size(self) -> int:
        """Bytes of the disk, a multiple of 512."""

    @property
    def block_size(self) -> int:
        """Logical block size: 512 or 4096 bytes."""

    @property
    def readonly(self) -> bool:
        """Whether writes are refused."""

    @property
    def in_place(self) -> InPlace | None:
        """How the core reads and overwrites what stays where it is, past this object; None for no way.

        Only for the request at hand: the next one asks again. What it does not take, the methods do.
        """

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes."""

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``."""

    def flush(self) -> None:
        """Return once everything written before is on stable storage."""

    def discard(self, offset: int, size: int) -> None:
        """A hint: the range's content is no longer needed; reads of it are undefined afterwards."""

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes; with ``unmap`` its storage may be given back."""

    def block_status(self, offset: int, size: int) -> Extent:
        """The extent that begins at ``offset``, cut to ``size``; merged or not with what follows."""

    def close(self) -> None:
        """Flush, unlock and close. Idempotent."""
