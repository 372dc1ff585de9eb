"""Opening the files that a machine boots from: checked before anything is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from sublet.errors import CorruptImage, HostRefused, UsageError
from sublet.hw import GuestMemory

_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class BootFile:
    """An open regular file whose size was taken once; reads past it are errors, not short results."""

    path: Path
    size: int
    stream: BinaryIO

    def read(self, offset: int, size: int, field: str) -> bytes:
        """Read exactly ``size`` bytes.

        Raises:
            CorruptImage: The file ends before ``field`` does.
        """
        if offset < 0 or size < 0 or offset + size > self.size:
            raise truncated(self, field, offset + size)
        self.stream.seek(offset)
        data = self.stream.read(size)
        if len(data) != size:
            raise truncated(self, field, offset + size)
        return data

    def copy_to(self, memory: GuestMemory, gpa: int, offset: int, size: int, field: str) -> None:
        """Copy a piece of the file into guest RAM, a chunk at a time."""
        for done in range(0, size, _CHUNK):
            data = self.read(offset + done, min(_CHUNK, size - done), field)
            memory.write(gpa + done, data)


def truncated(file: BootFile, field: str, wanted: int) -> CorruptImage:
    """The error for a file that ends too early."""
    return CorruptImage(
        f"{file.path} is truncated: {field} ends at byte {wanted}, the file has {file.size}",
        remedy="Fetch or copy the file again.",
    )


@contextmanager
def open_boot_file(path: Path, what: str, missing: str = "Check the path.") -> Iterator[BootFile]:
    """Open ``path`` for reading; ``what`` ("kernel", "initrd") is for messages.

    Args:
        missing: The remedy where there is no such file.

    Raises:
        UsageError: There is no such file, or it is not a regular file.
        HostRefused: The host does not let us read it.
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise UsageError(f"there is no {what} at {path}", remedy=missing) from error
    except OSError as error:
        raise HostRefused(f"cannot open the {what} {path}: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UsageError(f"the {what} {path} is not a regular file")
    with os.fdopen(descriptor, "rb") as stream:
        try:
            yield BootFile(path, status.st_size, stream)
        except OSError as error:
            raise HostRefused(f"cannot read the {what} {path}: {error.strerror}") from error
