"""Layers between a device and an image: each is a ``BlockDevice`` on another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from sublet.block.contract import BlockDevice, Extent
from sublet.block.description import MapExtent
from sublet.block.hostfile import Bytes
from sublet.core import InPlace


class Layer:
    """Hands everything to the device below (``BlockDevice``)."""

    def __init__(self, below: BlockDevice) -> None:
        self.below = below

    @property
    def size(self) -> int:
        """Bytes."""
        return self.below.size

    @property
    def block_size(self) -> int:
        """Bytes."""
        return self.below.block_size

    @property
    def readonly(self) -> bool:
        """Whether writes are refused."""
        return self.below.readonly

    @property
    def in_place(self) -> InPlace | None:
        """No way past this layer, unless it says so."""
        return None

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        return self.below.read(offset, size)

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``."""
        self.below.readinto(offset, buffer)

    def write(self, offset: int, data: Bytes) -> None:
        """Write all of ``data``."""
        self.below.write(offset, data)

    def flush(self) -> None:
        """Return once everything written before is on stable storage."""
        self.below.flush()

    def discard(self, offset: int, size: int) -> None:
        """The content is no longer needed."""
        self.below.discard(offset, size)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes."""
        self.below.write_zeroes(offset, size, unmap=unmap)

    def block_status(self, offset: int, size: int) -> Extent:
        """The extent that begins at ``offset``."""
        return self.below.block_status(offset, size)

    def close(self) -> None:
        """Close the device below."""
        self.below.close()


def _reads_only(device: BlockDevice) -> InPlace | None:
    places = device.in_place
    return places.reads_only() if places is not None else None


class Writethrough(Layer):
    """Every write is on stable storage when it returns."""

    @property
    def in_place(self) -> InPlace | None:
        """Reads need nothing of this layer."""
        return _reads_only(self.below)

    def write(self, offset: int, data: Bytes) -> None:
        """Write and flush."""
        self.below.write(offset, data)
        self.below.flush()

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = True) -> None:
        """Zero and flush."""
        self.below.write_zeroes(offset, size, unmap=unmap)
        self.below.flush()

    def discard(self, offset: int, size: int) -> None:
        """Discard and flush."""
        self.below.discard(offset, size)
        self.below.flush()


class _Bucket:
    """A leaky bucket: ``rate`` units a second, up to ``burst`` at once. The caller holds a lock."""

    def __init__(self, rate: int, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = 0.0
        self._last = now

    def delay(self, amount: int, now: float) -> float:
        """Take ``amount``; returns the seconds to wait before it may go on."""
        if not self._rate:
            return 0.0
        self._level = max(0.0, self._level - (now - self._last) * self._rate) + amount
        self._last = now
        return max(0.0, (self._level - self._burst) / self._rate)


class Throttle(Layer):
    """Limits requests and bytes a second, reads and writes together; flushes pass.

    Args:
        iops: Requests a second, 0 for no limit.
        bytes_per_second: Bytes a second, 0 for no limit.
        burst_s: How many seconds' worth may pass at once after a pause.
        clock, sleep: Seconds, monotonic; tests stop them.
    """

    def __init__(
        self,
        below: BlockDevice,
        *,
        iops: int = 0,
        bytes_per_second: int = 0,
        burst_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(below)
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._requests = _Bucket(iops, max(1, int(iops * burst_s)), clock())
        self._bytes = _Bucket(bytes_per_second, int(bytes_per_second * burst_s), clock())

    def _wait(self, size: int) -> None:
        with self._lock:
            now = self._clock()
            delay = max(self._requests.delay(1, now), self._bytes.delay(size, now))
        if delay > 0:
            self._sleep(delay)

    def read(self, offset: int, size: int) -> bytes:
        """Read in turn."""
        self._wait(size)
        return self.below.read(offset, size)

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Read in turn."""
        self._wait(len(memoryview(buffer).cast("B")))
        self.below.readinto(offset, buffer)

    def write(self, offset: int, data: Bytes) -> None:
        """Write in turn."""
        self._wait(len(data))
        self.below.write(offset, data)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = True) -> None:
        """Zero in turn: a request without bytes."""
        self._wait(0)
        self.below.write_zeroes(offset, size, unmap=unmap)

    def discard(self, offset: int, size: int) -> None:
        """Discard in turn: a request without bytes."""
        self._wait(0)
        self.below.discard(offset, size)


class MappedDevice(BlockDevice, Protocol):
    """A device that says where its content is stored."""

    def map(self, offset: int, size: int) -> MapExtent:
        """Where the range that begins at ``offset`` is stored, cut to ``size``, through the whole chain."""


class CopyOnRead(Layer):
    """Writes into an overlay what was read from its parents, so that it is read from there the next time."""

    def __init__(self, below: MappedDevice) -> None:
        super().__init__(below)
        self._image = below
        self._lock = threading.Lock()

    @property
    def in_place(self) -> InPlace | None:
        """What is read where it is came from no parent."""
        return _reads_only(self.below)

    def read(self, offset: int, size: int) -> bytes:
        """Read, and keep what came from a parent."""
        buffer = bytearray(size)
        self.readinto(offset, buffer)
        return bytes(buffer)

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Read, and keep what came from a parent."""
        view = memoryview(buffer).cast("B")
        self._image.readinto(offset, view)
        done = 0
        while done < len(view):
            extent = self._image.map(offset + done, len(view) - done)
            if extent.depth:
                self._keep(offset + done, extent.size)
            done += extent.size

    def _keep(self, offset: int, size: int) -> None:
        with self._lock:
            # Read again under the lock: a write may have come since.
            self._image.write(offset, self._image.read(offset, size))

    def write(self, offset: int, data: Bytes) -> None:
        """Write, never between the reading and the keeping of older data."""
        with self._lock:
            self._image.write(offset, data)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = True) -> None:
        """Zero, as ``write``."""
        with self._lock:
            self._image.write_zeroes(offset, size, unmap=unmap)

    def discard(self, offset: int, size: int) -> None:
        """Discard, as ``write``."""
        with self._lock:
            self._image.discard(offset, size)
