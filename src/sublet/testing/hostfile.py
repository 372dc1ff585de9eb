"""Host files for tests: in memory, recording what a crash could cut short, and failing on demand.

Crash tests run an operation on ``RecordingFiles``, then ask ``Recording.after`` for what the host could hold
had it crashed at some point, and open that with ``MemoryFiles``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sublet.block import BlockStatus, Extent
from sublet.block.hostfile import Bytes, HostFile, Lock, refuse_readonly
from sublet.errors import HostRefused

SECTOR = 512


class MemoryFile:
    """``block.hostfile.HostFile`` on a ``bytearray`` that its maker shares."""

    block_size = 512

    def __init__(self, path: Path, data: bytearray, *, readonly: bool = False) -> None:
        self.path = path
        self.data = data
        self.readonly = readonly
        self.identity = (0, id(data))

    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    def allocated(self) -> int:
        """Bytes."""
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes, zeroes past the end."""
        return bytes(self.data[offset : offset + size]).ljust(size, b"\0")

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``."""
        view = memoryview(buffer).cast("B")
        view[:] = self.read(offset, len(view))

    def write(self, offset: int, data: Bytes) -> None:
        """Write all of ``data``; what is between the end and ``offset`` becomes zero."""
        self._check_writable()
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(data)] = data

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = True) -> None:
        """Zero the range."""
        self.write(offset, bytes(size))

    def discard(self, offset: int, size: int) -> None:
        """The content becomes something that nobody may rely on."""
        self._check_writable()
        end = min(offset + size, len(self.data))
        if end > offset:
            self.data[offset:end] = b"\xdd" * (end - offset)

    def extent(self, offset: int, size: int) -> Extent:
        """All is data."""
        return Extent(offset, size, BlockStatus.DATA)

    def truncate(self, size: int) -> None:
        """Cut or zero-extend."""
        self._check_writable()
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def _check_writable(self) -> None:
        if self.readonly:
            raise refuse_readonly(self.path)


class MemoryFiles:
    """``block.hostfile.HostFiles`` on a mapping from path to content. Locks nothing."""

    def __init__(self, content: dict[Path, bytearray] | None = None) -> None:
        self.content = {} if content is None else content

    def open(self, path: Path, *, readonly: bool, lock: Lock | None = None) -> HostFile:
        """Open one that is there."""
        if path not in self.content:
            raise HostRefused(f"cannot open the image {path}: No such file or directory")
        return MemoryFile(path, self.content[path], readonly=readonly)

    def create(self, path: Path) -> HostFile:
        """Create one that is not."""
        if path in self.content:
            raise HostRefused(f"{path} exists already")
        self.content[path] = bytearray()
        return MemoryFile(path, self.content[path])

    def remove(self, path: Path) -> None:
        """Forget it."""
        self.content.pop(path, None)


@dataclass(frozen=True)
class Event:
    """Something that reached the host.

    ``kind``: "create", "remove", "write", "truncate" (``offset`` is the new size) or "flush".
    """

    kind: str
    path: Path
    offset: int = 0
    data: bytes = b""


class Recording:
    """What reached the host since the start, in order, and the content that it had then."""

    def __init__(self, content: dict[Path, bytearray]) -> None:
        self.start = {path: bytes(data) for path, data in content.items()}
        self.events: list[Event] = []

    def after(self, kept: Iterable[Event]) -> dict[Path, bytearray]:
        """The content that remains if just ``kept`` reached the disk, in that order."""
        files = MemoryFiles({path: bytearray(data) for path, data in self.start.items()})
        for event in kept:
            _replay(files, event)
        return files.content

    def prefix(self, count: int) -> dict[Path, bytearray]:
        """The content after the first ``count`` events."""
        return self.after(self.events[:count])

    def epochs(self) -> list[tuple[int, int]]:
        """Half-open ranges of events between flushes; writes in one may reach the disk in any order.

        Deviation: a flush of one file ends the epoch of every file. Orders across files are thus taken as
        kept; formats that span files must not rely on it.
        """
        ends = [index + 1 for index, event in enumerate(self.events) if event.kind == "flush"]
        ends.append(len(self.events))
        starts = [0, *ends[:-1]]
        return [(start, end) for start, end in zip(starts, ends, strict=True) if end > start]


def torn(event: Event, sectors: int) -> Event:
    """A write of which only the first ``sectors`` sectors arrived."""
    cut = sectors * SECTOR - event.offset % SECTOR
    return Event(event.kind, event.path, event.offset, event.data[: max(0, cut)])


def _replay(files: MemoryFiles, event: Event) -> None:
    if event.kind == "create":
        files.create(event.path).close()
        return
    if event.kind == "remove":
        files.remove(event.path)
        return
    file = files.open(event.path, readonly=False)
    if event.kind == "write":
        file.write(event.offset, event.data)
    elif event.kind == "truncate":
        file.truncate(event.offset)


class RecordingFile(MemoryFile):
    """A file in memory whose writes and barriers are kept in a ``Recording``."""

    def __init__(self, path: Path, data: bytearray, recording: Recording, *, readonly: bool = False) -> None:
        super().__init__(path, data, readonly=readonly)
        self._recording = recording

    def write(self, offset: int, data: Bytes) -> None:
        """Write and record."""
        super().write(offset, data)
        self._recording.events.append(Event("write", self.path, offset, bytes(data)))

    def discard(self, offset: int, size: int) -> None:
        """Discard, recorded as a write of what the range holds then."""
        super().discard(offset, size)
        end = min(offset + size, len(self.data))
        if end > offset:
            self._recording.events.append(Event("write", self.path, offset, bytes(self.data[offset:end])))

    def truncate(self, size: int) -> None:
        """Cut or extend and record."""
        super().truncate(size)
        self._recording.events.append(Event("truncate", self.path, size))

    def flush(self) -> None:
        """Record a barrier."""
        if not self.readonly:
            self._recording.events.append(Event("flush", self.path))


class RecordingFiles(MemoryFiles):
    """Files in memory that record all that happens to them in ``recording``."""

    def __init__(self, content: dict[Path, bytearray] | None = None) -> None:
        super().__init__(content)
        self.recording = Recording(self.content)

    def open(self, path: Path, *, readonly: bool, lock: Lock | None = None) -> HostFile:
        """Open one that is there."""
        super().open(path, readonly=readonly)
        return RecordingFile(path, self.content[path], self.recording, readonly=readonly)

    def create(self, path: Path) -> HostFile:
        """Create one that is not, and record it."""
        super().create(path)
        self.recording.events.append(Event("create", path))
        return RecordingFile(path, self.content[path], self.recording)

    def remove(self, path: Path) -> None:
        """Forget it, and record it."""
        super().remove(path)
        self.recording.events.append(Event("remove", path))


class FaultyFile(MemoryFile):
    """A file in memory that fails where ``fails`` says so, given "read", "write" or "flush"."""

    def __init__(self, path: Path, data: bytearray, fails: Callable[[str], bool], *, readonly: bool) -> None:
        super().__init__(path, data, readonly=readonly)
        self._fails = fails

    def _maybe_fail(self, operation: str) -> None:
        if self._fails(operation):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.path))

    def read(self, offset: int, size: int) -> bytes:
        """Read or fail."""
        self._maybe_fail("read")
        return super().read(offset, size)

    def write(self, offset: int, data: Bytes) -> None:
        """Write or fail."""
        self._maybe_fail("write")
        super().write(offset, data)

    def flush(self) -> None:
        """Flush or fail."""
        self._maybe_fail("flush")


class FaultyFiles(MemoryFiles):
    """Files in memory that fail where ``fails`` says so."""

    def __init__(self, content: dict[Path, bytearray], fails: Callable[[str], bool]) -> None:
        super().__init__(content)
        self.fails = fails

    def open(self, path: Path, *, readonly: bool, lock: Lock | None = None) -> HostFile:
        """Open one that is there."""
        super().open(path, readonly=readonly)
        return FaultyFile(path, self.content[path], self.fails, readonly=readonly)
