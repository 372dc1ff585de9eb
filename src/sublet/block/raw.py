"""Raw images: byte n of the disk is byte n of a file or block device.

A file is opened as raw only because someone said that it is raw; its content is never guessed at, because a
guest writes that content (a raw disk on which a guest wrote a QCOW2 header must stay a raw disk).

Locking: an open file description lock on the whole file, exclusive for a writable image and shared for a
read-only one. It keeps two machines off one disk and vanishes with the process.

Reference: fcntl(2) "Open file description locks", fallocate(2), lseek(2) "SEEK_HOLE".
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

from sublet.block.contract import BlockStatus, Extent
from sublet.errors import HostRefused, ImageError, SubletError, UsageError, WrongMoment

SECTOR = 512
F_OFD_SETLK = 37
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 1, 2, 0x10
_BLKSSZGET = 0x1268
_ZEROES = bytes(1 << 20)
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class RawImage:
    """A raw image, open until ``close`` (``BlockDevice``).

    Positioned system calls only, so threads need no lock.

    Args:
        path: A regular file or a block device.
        readonly: Open for reading only.

    Raises:
        HostRefused: It cannot be opened, or another process has it locked.
        ImageError: It is neither file nor block device, or is empty.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        self._readonly = readonly
        self._closed = False
        self._fd = _open(path, readonly)
        try:
            self._is_device = _check_kind(path, self._fd)
            _lock(path, self._fd, exclusive=not readonly)
            self._size = _measure(path, self._fd)
            self._block_size = _logical_block_size(self._fd) if self._is_device else SECTOR
        except BaseException:
            os.close(self._fd)
            raise
        self._can_fallocate = not readonly

    @property
    def size(self) -> int:
        """Bytes; an odd tail of a file that fills no sector is not part of the disk."""
        return self._size

    @property
    def block_size(self) -> int:
        """512, or what the block device says."""
        return self._block_size

    @property
    def readonly(self) -> bool:
        """Whether the image was opened for reading only."""
        return self._readonly

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes; a file that shrank underneath reads as zeroes."""
        self._check(offset, size)
        data = os.pread(self._fd, size, offset)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                return data.ljust(size, b"\0")
            data += more
        return data

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``."""
        view = memoryview(buffer).cast("B")
        self._check(offset, len(view))
        while view:
            count = os.preadv(self._fd, [view], offset)
            if not count:
                view[:] = bytes(len(view))
                return
            view = view[count:]
            offset += count

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``."""
        size = len(data)
        self._check_writable(offset, size)
        done = os.pwrite(self._fd, data, offset)
        while done < size:
            done += os.pwrite(self._fd, memoryview(data)[done:], offset + done)

    def flush(self) -> None:
        """fdatasync: data, and the metadata needed to find it."""
        if not self._readonly:
            os.fdatasync(self._fd)

    def discard(self, offset: int, size: int) -> None:
        """Punch a hole where the file system can; else nothing happens."""
        self._check_writable(offset, size)
        self._fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool = True) -> None:
        """Punch a hole or zero the range in place; where the host cannot, write zeroes."""
        self._check_writable(offset, size)
        mode = FALLOC_FL_PUNCH_HOLE if unmap else FALLOC_FL_ZERO_RANGE
        if self._fallocate(mode | FALLOC_FL_KEEP_SIZE, offset, size):
            return
        while size:
            piece = _ZEROES[:size]
            self.write(offset, piece)
            offset += len(piece)
            size -= len(piece)

    def _fallocate(self, mode: int, offset: int, size: int) -> bool:
        """Whether the host did it; False when it does not know how."""
        if not size or not self._can_fallocate:
            return not size
        if _LIBC.fallocate(self._fd, mode, offset, size) == 0:
            return True
        number = ctypes.get_errno()
        if number == errno.EINTR:
            return self._fallocate(mode, offset, size)
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number), str(self.path))
        # Another mode may still work: only ENOSYS rules the call out for good.
        self._can_fallocate = number != errno.ENOSYS
        return False

    def block_status(self, offset: int, size: int) -> Extent:
        """Holes are zero; all else is data. Block devices have no holes to see."""
        self._check(offset, size)
        end = offset + size
        if self._is_device:
            return Extent(offset, size, BlockStatus.DATA)
        data = _seek(self._fd, offset, os.SEEK_DATA, end)
        if data > offset:
            return Extent(offset, min(data, end) - offset, BlockStatus.ZERO)
        hole = _seek(self._fd, offset, os.SEEK_HOLE, end)
        return Extent(offset, min(hole, end) - offset, BlockStatus.DATA)

    def close(self) -> None:
        """Flush and close; the lock goes with the descriptor."""
        if self._closed:
            return
        self._closed = True
        try:
            self.flush()
        finally:
            os.close(self._fd)

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self._size:
            raise UsageError(f"{size} bytes at {offset} lie outside a disk of {self._size} bytes")
        if self._closed:
            raise WrongMoment(f"{self.path} is closed")

    def _check_writable(self, offset: int, size: int) -> None:
        self._check(offset, size)
        if self._readonly:
            raise WrongMoment(f"{self.path} is open for reading only")


def _open(path: Path, readonly: bool) -> int:
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except OSError as error:
        raise HostRefused(
            f"cannot open the disk {path}: {error.strerror}",
            remedy="" if readonly else "Open it read-only, or check its permissions.",
        ) from error


def _check_kind(path: Path, fd: int) -> bool:
    """Whether it is a block device; O_NONBLOCK kept a FIFO from blocking us until here."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ImageError(f"{path} is neither a regular file nor a block device")
    return stat.S_ISBLK(mode)


def _lock(path: Path, fd: int, *, exclusive: bool) -> None:
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
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


def _measure(path: Path, fd: int) -> int:
    size = os.lseek(fd, 0, os.SEEK_END) // SECTOR * SECTOR
    if not size:
        raise ImageError(f"the disk {path} is smaller than a sector of {SECTOR} bytes")
    return size


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
