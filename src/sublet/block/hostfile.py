"""Host files under the disk formats: positioned access, holes, barriers and locks.

A format reads and writes a ``HostFile`` and never a descriptor of its own, so that tests can put a
recording, failing or in-memory file under it (``sublet.testing.hostfile``). ``HostFiles`` is how formats
come by them, parents and extents among them.

Locking: an open file description lock on the whole file, exclusive for a writable file and shared for a
read-only one. It keeps two machines off one disk and vanishes with the process.

Reference: fcntl(2) "Open file description locks", fallocate(2), lseek(2) "SEEK_HOLE".
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from sublet.block.contract import BlockStatus, Extent
from sublet.errors import CorruptImage, HostRefused, ImageError, SubletError, UsageError, WrongMoment

Bytes = bytes | bytearray | memoryview

F_OFD_SETLK: Final = 37
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 1, 2, 0x10
DIRECT_ALIGNMENT: Final = 4096
"""Alignment of offsets, sizes and memory for O_DIRECT: satisfies disks of 512- and 4096-byte blocks."""
_DIRECT_PIECE: Final = 1 << 20
_BLKSSZGET: Final = 0x1268
_ZEROES: Final = bytes(1 << 20)
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Lock(enum.Enum):
    """Who else may have a file open at the same time."""

    EXCLUSIVE = "exclusive"
    """Nobody."""
    SHARED = "shared"
    """Readers."""
    NONE = "none"
    """Anybody: for looking at a disk in use, whose content may change underneath."""


class HostFile(Protocol):
    """Bytes on the host. Any thread may call any method, also concurrently.

    Offsets and sizes are bytes. Reads past the end yield zeroes; writes past it extend the file. Only
    ``flush`` orders: what was written before it is on stable storage before anything written after.
    ``OSError`` when the host fails.
    """

    @property
    def path(self) -> Path:
        """Where it is, for messages and for what is relative to it."""

    @property
    def readonly(self) -> bool:
        """Whether writes are refused."""

    @property
    def block_size(self) -> int:
        """Logical block size of a device, 512 for a file."""

    @property
    def identity(self) -> tuple[int, int]:
        """Equal for two openings of one file: device and inode number."""

    def size(self) -> int:
        """Bytes now."""

    def allocated(self) -> int:
        """Bytes of storage that it takes."""

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes, zeroes past the end."""

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``, with zeroes past the end."""

    def write(self, offset: int, data: Bytes) -> None:
        """Write all of ``data``."""

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes; with ``unmap`` its storage may be given back."""

    def discard(self, offset: int, size: int) -> None:
        """Give the range's storage back where the host can; reads of it are undefined afterwards."""

    def extent(self, offset: int, size: int) -> Extent:
        """Whether ``offset`` begins a hole or data, and for how many of the ``size`` bytes."""

    def truncate(self, size: int) -> None:
        """Make the file ``size`` bytes long; new bytes are zero."""

    def flush(self) -> None:
        """Return once everything written before is on stable storage."""

    def close(self) -> None:
        """Flush and close; idempotent."""


class HostFiles(Protocol):
    """How formats come by host files."""

    def open(self, path: Path, *, readonly: bool, lock: Lock | None = None) -> HostFile:
        """Open an existing file; ``lock`` is by default exclusive for writing and else shared.

        Raises:
            HostRefused: It cannot be opened, or is in use.
            ImageError: It is neither a regular file nor a block device.
        """

    def create(self, path: Path) -> HostFile:
        """Create an empty file, writable and locked exclusively.

        Raises:
            HostRefused: It exists already, or cannot be created.
        """

    def remove(self, path: Path) -> None:
        """Remove a file that this object created, or that a failed operation left; missing is fine."""


@contextmanager
def new_file(files: HostFiles, path: Path) -> Iterator[HostFile]:
    """Create a file, closed at the end of the ``with`` block; nothing of it is left when that fails.

    Raises:
        HostRefused: It exists already, or cannot be created.
    """
    file = files.create(path)
    try:
        yield file
        file.close()
    except BaseException:
        file.close()
        files.remove(path)
        raise


def read_structure(file: HostFile, offset: int, size: int, what: str) -> bytes:
    """Read an on-disk structure that has to be there in full.

    Args:
        what: Its name for the message, as in "L1 table".

    Raises:
        CorruptImage: A part of it lies outside the file.
    """
    if offset < 0 or offset + size > file.size():
        raise CorruptImage(f"{file.path}: the {what} ({size} bytes at {offset}) lies outside the file")
    return file.read(offset, size)


class OsFiles:
    """The host's own files (``HostFiles``).

    Args:
        direct: Bypass the host's page cache (O_DIRECT).
        sync: Whether ``flush`` reaches stable storage; without it a host's crash loses data.
    """

    def __init__(self, *, direct: bool = False, sync: bool = True) -> None:
        self._direct = direct
        self._sync = sync

    def open(self, path: Path, *, readonly: bool, lock: Lock | None = None) -> HostFile:
        """See ``HostFiles.open``."""
        flags = os.O_RDONLY if readonly else os.O_RDWR
        return self._open(path, flags, lock or (Lock.SHARED if readonly else Lock.EXCLUSIVE))

    def create(self, path: Path) -> HostFile:
        """See ``HostFiles.create``."""
        return self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, Lock.EXCLUSIVE)

    def remove(self, path: Path) -> None:
        """See ``HostFiles.remove``."""
        path.unlink(missing_ok=True)

    def _open(self, path: Path, flags: int, lock: Lock) -> HostFile:
        kind = DirectFile if self._direct else OsFile
        return kind(path, flags, lock, sync=self._sync)


class OsFile:
    """A regular file or block device (``HostFile``): positioned calls only, so threads need no lock."""

    def __init__(self, path: Path, flags: int, lock: Lock, *, sync: bool = True) -> None:
        self.path = path
        self.readonly = not flags & os.O_RDWR
        self._sync = sync and not self.readonly
        self._closed = False
        self._can_fallocate = not self.readonly
        self.fd = _open(path, flags, self.readonly)
        try:
            self.is_device = _check_kind(path, self.fd)
            _lock(path, self.fd, lock)
            self.block_size = _logical_block_size(self.fd) if self.is_device else 512
            status = os.fstat(self.fd)
            self.identity = (status.st_dev, status.st_ino)
        except BaseException:
            os.close(self.fd)
            raise

    @property
    def fast_fd(self) -> int:
        """See ``descriptor``."""
        return self.fd

    def size(self) -> int:
        """Bytes now; also right for a block device, whose status says 0."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def allocated(self) -> int:
        """Bytes of storage: less than the size for a sparse file."""
        return self.size() if self.is_device else os.fstat(self.fd).st_blocks * 512

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes, zeroes past the end."""
        data = os.pread(self.fd, size, offset)
        while len(data) < size:
            more = os.pread(self.fd, size - len(data), offset + len(data))
            if not more:
                return data.ljust(size, b"\0")
            data += more
        return data

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``, with zeroes past the end."""
        view = memoryview(buffer).cast("B")
        while view:
            count = os.preadv(self.fd, [view], offset)
            if not count:
                view[:] = bytes(len(view))
                return
            view = view[count:]
            offset += count

    def write(self, offset: int, data: Bytes) -> None:
        """Write all of ``data``."""
        size = len(data)
        done = os.pwrite(self.fd, data, offset)
        while done < size:
            done += os.pwrite(self.fd, memoryview(data)[done:], offset + done)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = True) -> None:
        """Punch a hole or zero the range in place; where the host cannot, write zeroes."""
        if not size:
            return
        mode = FALLOC_FL_PUNCH_HOLE if unmap else FALLOC_FL_ZERO_RANGE
        if self._fallocate(mode | FALLOC_FL_KEEP_SIZE, offset, size):
            if not self.is_device and offset + size > self.size():
                self.truncate(offset + size)
            return
        while size:
            piece = memoryview(_ZEROES)[:size]
            self.write(offset, piece)
            offset += len(piece)
            size -= len(piece)

    def discard(self, offset: int, size: int) -> None:
        """Punch a hole where the file system can; else nothing happens."""
        self._fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size)

    def _fallocate(self, mode: int, offset: int, size: int) -> bool:
        """Whether the host did it; False when it does not know how."""
        if not size or not self._can_fallocate:
            return not size
        if _LIBC.fallocate(self.fd, mode, offset, size) == 0:
            return True
        number = ctypes.get_errno()
        if number == errno.EINTR:
            return self._fallocate(mode, offset, size)
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number), str(self.path))
        # Another mode may still work: only ENOSYS rules the call out for good.
        self._can_fallocate = number != errno.ENOSYS
        return False

    def extent(self, offset: int, size: int) -> Extent:
        """Holes are zero; all else is data. Block devices have no holes to see."""
        end = offset + size
        if self.is_device:
            return Extent(offset, size, BlockStatus.DATA)
        data = _seek(self.fd, offset, os.SEEK_DATA, end)
        if data > offset:
            return Extent(offset, min(data, end) - offset, BlockStatus.ZERO)
        hole = _seek(self.fd, offset, os.SEEK_HOLE, end)
        return Extent(offset, min(hole, end) - offset, BlockStatus.DATA)

    def truncate(self, size: int) -> None:
        """Make the file ``size`` bytes long; new bytes are zero."""
        if self.is_device:
            if size > self.size():
                raise UsageError(f"{self.path} is a block device of {self.size()} bytes and cannot grow")
            return
        os.ftruncate(self.fd, size)

    def flush(self) -> None:
        """fdatasync: data, and the metadata needed to find it."""
        if self._sync:
            os.fdatasync(self.fd)

    def close(self) -> None:
        """Flush and close; the lock goes with the descriptor."""
        if self._closed:
            return
        self._closed = True
        try:
            self.flush()
        finally:
            os.close(self.fd)


def descriptor(file: HostFile) -> int | None:
    """The descriptor by which the core may move a file's bytes; None where each access needs its code.

    With O_DIRECT the host refuses what is not aligned, and then the file's code is asked.
    """
    # Of these two classes alone: another one has its own idea of what its bytes are.
    return file.fast_fd if type(file) is OsFile or type(file) is DirectFile else None


class DirectFile(OsFile):
    """A file past the host's page cache (O_DIRECT), through a buffer of each thread that is aligned.

    What is not aligned goes through the page cache, which the host keeps coherent with the direct accesses;
    reading and writing back the blocks around it instead would lose what another thread writes there.

    Reference: open(2) "O_DIRECT".
    """

    def __init__(self, path: Path, flags: int, lock: Lock, *, sync: bool = True) -> None:
        super().__init__(path, flags, lock, sync=sync)
        mode = os.O_RDONLY if self.readonly else os.O_RDWR
        try:
            self._direct = os.open(path, mode | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            super().close()
            raise HostRefused(
                f"cannot open {path} without the page cache: {error.strerror}",
                remedy="Its file system has no O_DIRECT: take another cache mode.",
            ) from error
        self._buffers = threading.local()

    @property
    def fast_fd(self) -> int:
        """See ``descriptor``."""
        return self._direct

    def _buffer(self) -> mmap.mmap:
        """Page-aligned memory of this thread."""
        buffer: mmap.mmap | None = getattr(self._buffers, "buffer", None)
        if buffer is None:
            buffer = self._buffers.buffer = mmap.mmap(-1, _DIRECT_PIECE)
        return buffer

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes, zeroes past the end."""
        if (offset | size) % DIRECT_ALIGNMENT:
            return super().read(offset, size)
        data = bytearray(size)
        self.readinto(offset, data)
        return bytes(data)

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``, with zeroes past the end."""
        view = memoryview(buffer).cast("B")
        if (offset | len(view)) % DIRECT_ALIGNMENT:
            super().readinto(offset, view)
            return
        while view:
            count = min(len(view), _DIRECT_PIECE)
            with memoryview(self._buffer()) as area, area[:count] as piece:
                found = os.preadv(self._direct, [piece], offset)
                view[:found] = piece[:found]
            view[found:count] = bytes(count - found)
            view = view[count:]
            offset += count

    def write(self, offset: int, data: Bytes) -> None:
        """Write all of ``data``."""
        view = memoryview(data).cast("B")
        if (offset | len(view)) % DIRECT_ALIGNMENT:
            super().write(offset, view)
            return
        while view:
            count = min(len(view), _DIRECT_PIECE)
            with memoryview(self._buffer()) as area, area[:count] as piece:
                piece[:] = view[:count]
                if os.pwrite(self._direct, piece, offset) != count:
                    raise OSError(errno.EIO, "short write", str(self.path))
            view = view[count:]
            offset += count

    def close(self) -> None:
        """Flush and close."""
        if not self._closed:
            os.close(self._direct)
        super().close()


def _open(path: Path, flags: int, readonly: bool) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except FileExistsError as error:
        raise HostRefused(
            f"{path} exists already", remedy="Choose another name, or remove it first."
        ) from error
    except FileNotFoundError as error:
        raise HostRefused(
            f"cannot open the image {path}: {error.strerror}",
            remedy="Check the path; sublet disk create makes a new disk.",
        ) from error
    except OSError as error:
        raise HostRefused(
            f"cannot open the image {path}: {error.strerror}",
            remedy="" if readonly else "Open it read-only, or check its permissions.",
        ) from error


def _check_kind(path: Path, fd: int) -> bool:
    """Whether it is a block device; O_NONBLOCK kept a FIFO from blocking us until here."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ImageError(f"{path} is neither a regular file nor a block device")
    return stat.S_ISBLK(mode)


def _lock(path: Path, fd: int, lock: Lock) -> None:
    if lock is Lock.NONE:
        return
    kind = fcntl.F_WRLCK if lock is Lock.EXCLUSIVE else fcntl.F_RDLCK
    request = struct.pack("hhqqixxxx", kind, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise HostRefused(
                f"the disk {path} is in use by another machine",
                remedy="Stop that machine, or give this one a copy.",
            ) from error
        raise _lock_unavailable(path, error) from error


def _lock_unavailable(path: Path, error: OSError) -> SubletError:
    return HostRefused(f"cannot lock the disk {path}: {error.strerror}")


def _logical_block_size(fd: int) -> int:
    answer = fcntl.ioctl(fd, _BLKSSZGET, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    """Next data or hole from ``offset``; ``end`` when there is none."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end
        raise


def refuse_readonly(path: Path) -> WrongMoment:
    """The error of every write to a read-only image."""
    return WrongMoment(f"{path} is open for reading only")
