"""Writing initramfs archives: cpio in the "newc" form, the same bytes for the same content."""

from __future__ import annotations

import stat
from typing import IO, Final

_MAGIC: Final = "070701"
_TRAILER: Final = "TRAILER!!!"
_ALIGNMENT: Final = 4
_BLOCK: Final = 512


class CpioWriter:
    """Appends entries, all owned by root and dated zero, to a binary stream.

    Parents must come before what lies in them: the kernel makes no directories of its own.

    Reference: Linux 6.1 Documentation/driver-api/early-userspace/buffer-format.rst.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._inode = 0
        self._written = 0

    def directory(self, name: str, mode: int = 0o755) -> None:
        """A directory; ``name`` is relative to the root, without a leading slash."""
        self._entry(name, stat.S_IFDIR | mode, links=2)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._entry(name, stat.S_IFREG | mode, data)

    def symlink(self, name: str, target: str) -> None:
        """A symbolic link to ``target``."""
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device node."""
        self._entry(name, stat.S_IFCHR | mode, device=(major, minor))

    def close(self) -> None:
        """Write the trailer and pad to a block. The stream stays open."""
        self._inode = -1
        self._entry(_TRAILER, 0)
        self._pad(_BLOCK)

    def _entry(
        self, name: str, mode: int, data: bytes = b"", *, links: int = 1, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = _MAGIC + "".join(f"{field:08X}" for field in fields)
        self._write(header.encode() + encoded)
        self._pad(_ALIGNMENT)
        self._write(data)
        self._pad(_ALIGNMENT)

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._written += len(data)

    def _pad(self, alignment: int) -> None:
        self._write(bytes(-self._written % alignment))
