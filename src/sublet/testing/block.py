"""A disk in memory."""

from __future__ import annotations

from sublet.block import BlockStatus, Extent
from sublet.errors import UsageError, WrongMoment


class RamDisk:
    """``size`` zero bytes to begin with (``block.BlockDevice``); counts flushes and can be made to fail."""

    in_place = None
    """The core has no way past it."""

    def __init__(self, size: int, *, readonly: bool = False, block_size: int = 512) -> None:
        self.data = bytearray(size)
        self.flushes = 0
        self.discarded: list[tuple[int, int]] = []
        self.closed = False
        self.failure: OSError | None = None
        self._readonly = readonly
        self._block_size = block_size

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    @property
    def block_size(self) -> int:
        """Bytes."""
        return self._block_size

    @property
    def readonly(self) -> bool:
        """Whether writes are refused."""
        return self._readonly

    def _check(self, offset: int, size: int) -> None:
        if self.failure is not None:
            raise self.failure
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise UsageError(f"{size} bytes at {offset} lie outside a disk of {len(self.data)} bytes")

    def _check_writable(self, offset: int, size: int) -> None:
        self._check(offset, size)
        if self._readonly:
            raise WrongMoment("the disk is read-only")

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        self._check(offset, size)
        return bytes(self.data[offset : offset + size])

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``."""
        view = memoryview(buffer).cast("B")
        view[:] = self.read(offset, len(view))

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``."""
        self._check_writable(offset, len(data))
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Counted."""
        self._check(0, 0)
        self.flushes += 1

    def discard(self, offset: int, size: int) -> None:
        """Remembered; the content stays, as it may."""
        self._check_writable(offset, size)
        self.discarded.append((offset, size))

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = True) -> None:
        """Zero the range."""
        self.write(offset, bytes(size))

    def block_status(self, offset: int, size: int) -> Extent:
        """All is data."""
        self._check(offset, size)
        return Extent(offset, size, BlockStatus.DATA)

    def close(self) -> None:
        """Remembered."""
        self.closed = True
