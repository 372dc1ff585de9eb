"""A disk of a running machine, whose image can be exchanged between two requests.

The lock order is: the drive's own lock, which is never held during I/O; then what an image or a job locks.
Requests wait in two cases only: while somebody has the drive alone (an exchange), and writes while their
range is held (a job copies it).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from sublet.block.contract import Extent
from sublet.block.description import MapExtent
from sublet.block.format import Image
from sublet.block.hostfile import Bytes, HostFiles, OsFiles
from sublet.core import InPlace
from sublet.errors import WrongMoment

Range = tuple[int, int]
"""Half-open, in bytes."""


class Watcher(Protocol):
    """Follows what a guest writes, on the thread of each request. What it raises, the request raises."""

    def before_write(self, offset: int, size: int) -> None:
        """The range is about to change."""

    def after_write(self, offset: int, size: int, data: Bytes | None) -> None:
        """The range holds ``data`` now; None: it was zeroed or discarded."""


class Drive:
    """A ``BlockDevice`` that hands everything to an image, and changes the image when asked.

    Args:
        image: Closed with the drive.
        files: How further images of this disk are opened: with its cache mode.
    """

    def __init__(self, image: Image, *, files: HostFiles | None = None) -> None:
        self.files = files or OsFiles()
        self._image = image
        self._size = image.size
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._requests = 0
        self._writes: list[Range] = []
        self._held: list[Range] = []
        self._alone = False
        self._waiting = 0
        self._watcher: Watcher | None = None
        self._job: str | None = None
        self._closing = False
        self._barred = 0
        """How many keep requests from passing by this object."""
        self._watching = ExitStack()

    # The device's side

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self._size

    @property
    def block_size(self) -> int:
        """512 or 4096 bytes; an exchange never changes it."""
        return self._image.block_size

    @property
    def readonly(self) -> bool:
        """Whether writes are refused."""
        return self._image.readonly

    @property
    def in_place(self) -> InPlace | None:
        """The image's way past both, while nobody has the drive alone, holds a range or watches."""
        return None if self._barred else self._image.in_place

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        self._enter()
        try:
            return self._image.read(offset, size)
        finally:
            self._leave()

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``."""
        self._enter()
        try:
            self._image.readinto(offset, buffer)
        finally:
            self._leave()

    def write(self, offset: int, data: Bytes) -> None:
        """Write all of ``data``."""
        size = len(data)
        with self._writing(offset, size) as watcher:
            self._image.write(offset, data)
            if watcher is not None:
                watcher.after_write(offset, size, data)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes."""
        with self._writing(offset, size) as watcher:
            self._image.write_zeroes(offset, size, unmap=unmap)
            if watcher is not None:
                watcher.after_write(offset, size, None)

    def discard(self, offset: int, size: int) -> None:
        """The content is no longer needed. While a job follows, zeroes: both sides must read the same."""
        with self._writing(offset, size) as watcher:
            if watcher is None:
                self._image.discard(offset, size)
            else:
                self._image.write_zeroes(offset, size)
                watcher.after_write(offset, size, None)

    def flush(self) -> None:
        """Return once everything written before is on stable storage."""
        self._enter()
        try:
            self._image.flush()
        finally:
            self._leave()

    def block_status(self, offset: int, size: int) -> Extent:
        """The extent that begins at ``offset``."""
        self._enter()
        try:
            return self._image.block_status(offset, size)
        finally:
            self._leave()

    def map(self, offset: int, size: int) -> MapExtent:
        """Where the range is stored; see ``Image.map``."""
        self._enter()
        try:
            return self._image.map(offset, size)
        finally:
            self._leave()

    def close(self) -> None:
        """Cancel what job there is, then flush and close. Idempotent."""
        with self._lock:
            self._closing = True
            while self._job is not None:
                self._changed.wait()
        with self.alone():
            self._image.close()

    # The jobs' side

    @property
    def image(self) -> Image:
        """What answers now. A job that uses it beside the guest holds the range, or has the drive alone."""
        return self._image

    @property
    def closing(self) -> bool:
        """Whether a job has to give up."""
        return self._closing

    @property
    def job(self) -> str | None:
        """What job runs, in a word."""
        return self._job

    @contextmanager
    def claim(self, job: str) -> Iterator[None]:
        """Be the one job of this drive.

        Raises:
            WrongMoment: There is another, or the machine ends.
        """
        with self._lock:
            if self._closing:
                raise WrongMoment("the machine is ending")
            if self._job is not None:
                raise WrongMoment(f"{self._image.path}: a {self._job} is under way on this disk")
            self._job = job
        try:
            yield
        finally:
            with self._lock:
                self._job = None
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no request is under way, and keep new ones waiting meanwhile."""
        with self._barring():
            with self._lock:
                self._waiting += 1
                while self._alone:
                    self._changed.wait()
                self._alone = True
                while self._requests:
                    self._changed.wait()
                self._waiting -= 1
            try:
                yield
            finally:
                with self._lock:
                    self._alone = False
                    self._changed.notify_all()

    @contextmanager
    def hold(self, offset: int, size: int) -> Iterator[None]:
        """Wait until no write to the range is under way, and keep new ones waiting meanwhile."""
        span = (offset, offset + size)
        with self._barring():
            with self._lock:
                self._waiting += 1
                self._held.append(span)
                while _overlaps(self._writes, span):
                    self._changed.wait()
                self._waiting -= 1
            try:
                yield
            finally:
                with self._lock:
                    self._held.remove(span)
                    self._changed.notify_all()

    def exchange(self, image: Image) -> Image:
        """Let ``image`` answer from now on; returns the one before. Precondition: the drive is alone."""
        before, self._image = self._image, image
        return before

    def watch(self, watcher: Watcher | None) -> None:
        """Let ``watcher`` follow every write from now on. Precondition: the drive is alone."""
        if watcher is not None and self._watcher is None:
            self._watching.enter_context(self._barring())
        elif watcher is None:
            self._watching.close()
        self._watcher = watcher

    # Inside

    @contextmanager
    def _barring(self) -> Iterator[None]:
        """Let no request pass by this object, once those under way have ended.

        An image that is exchanged meanwhile stays barred: somebody may still have its way in hand.
        """
        with self._lock:
            self._barred += 1
            image = self._image
        if image.in_place is not None:
            image.in_place.shut()
        try:
            yield
        finally:
            with self._lock:
                if image.in_place is not None and image is self._image:
                    image.in_place.open()
                self._barred -= 1

    def _enter(self) -> None:
        with self._lock:
            while self._alone:
                self._changed.wait()
            self._requests += 1

    def _leave(self) -> None:
        with self._lock:
            self._requests -= 1
            if self._waiting:
                self._changed.notify_all()

    @contextmanager
    def _writing(self, offset: int, size: int) -> Iterator[Watcher | None]:
        """One write to the range, from its turn to its end; gives the watcher, which knows of it already."""
        span = (offset, offset + size)
        with self._lock:
            while self._must_wait(span):
                self._changed.wait()
            self._requests += 1
            self._writes.append(span)
        try:
            if self._watcher is not None:
                self._watcher.before_write(offset, size)
            yield self._watcher
        finally:
            with self._lock:
                self._requests -= 1
                self._writes.remove(span)
                if self._waiting or self._held or self._watcher is not None:
                    self._changed.notify_all()

    def _must_wait(self, span: Range) -> bool:
        if self._alone or (self._held and _overlaps(self._held, span)):
            return True
        # Two writes to one place must reach a copy in the order in which they reached the disk.
        return self._watcher is not None and _overlaps(self._writes, span)


def _overlaps(ranges: list[Range], span: Range) -> bool:
    return any(start < span[1] and span[0] < end for start, end in ranges)
