"""The headers by which a kernel says that a Multiboot loader may load it, and how.

Reference: Multiboot Specification 0.6.96 §3.1 "OS image format"; Multiboot2 Specification 2.0 §3.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sublet.errors import CorruptImage, UnsupportedImage
from sublet.machine.boot.files import BootFile

MAGIC_1: Final = 0x1BADB002
MAGIC_2: Final = 0xE85250D6
_SEARCH_1: Final = 8192
_SEARCH_2: Final = 32768
"""Bytes of the file in which the header lies, whole."""

_PAGE_ALIGN_1, _MEMORY_1, _VIDEO_1, _ADDRESSES_1 = 1 << 0, 1 << 1, 1 << 2, 1 << 16
_KNOWN_REQUIREMENTS_1: Final = _PAGE_ALIGN_1 | _MEMORY_1 | _VIDEO_1
_REQUIREMENTS_1: Final = 0xFFFF

_ARCHITECTURE_I386: Final = 0
_TAG_END, _TAG_REQUEST, _TAG_ADDRESS, _TAG_ENTRY = 0, 1, 2, 3
_TAG_OPTIONAL: Final = 1
_IGNORED_TAGS: Final = frozenset((4, 5, 6, 7, 8, 9, 10))
"""Console, framebuffer, alignment of modules (always), EFI, relocation (never needed)."""
_LAST_INFORMATION: Final = 21
_WHOLE_FILE: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class LoadAddresses:
    """Where a kernel that need not be ELF wants to be; all physical, ends 0 for "until the file's"."""

    header: int
    load: int
    load_end: int
    bss_end: int


@dataclass(frozen=True, slots=True)
class MultibootHeader:
    """A checked header of either version."""

    version: int
    offset: int
    """In the file."""
    addresses: LoadAddresses | None = None
    entry: int | None = None
    """Physical; None: the ELF file's."""


def find_header(file: BootFile) -> MultibootHeader | None:
    """The kernel's header, that of version 2 first; None when it has neither.

    Raises:
        CorruptImage: A field cannot be right.
        UnsupportedImage: It asks for something that is not there.
    """
    start = file.read(0, min(file.size, _SEARCH_2), "the multiboot header")
    for offset in range(0, len(start) - 15, 8):
        magic, architecture, length, checksum = struct.unpack_from("<IIII", start, offset)
        if magic == MAGIC_2 and not magic + architecture + length + checksum & 0xFFFF_FFFF:
            return _read_2(file, start, offset, architecture, length)
    for offset in range(0, min(len(start), _SEARCH_1) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", start, offset)
        if magic == MAGIC_1 and not magic + flags + checksum & 0xFFFF_FFFF:
            return _read_1(file, start, offset, flags)
    return None


def _read_1(file: BootFile, start: bytes, offset: int, flags: int) -> MultibootHeader:
    unknown = flags & _REQUIREMENTS_1 & ~_KNOWN_REQUIREMENTS_1
    if unknown:
        raise UnsupportedImage(
            f"the kernel {file.path} requires features of its multiboot loader that are not known: "
            f"flags {unknown:#x}"
        )
    if not flags & _ADDRESSES_1:
        return MultibootHeader(1, offset)
    if offset + 32 > len(start):
        raise CorruptImage(f"the kernel {file.path} is truncated: its multiboot header has no addresses")
    header, load, load_end, bss_end, entry = struct.unpack_from("<IIIII", start, offset + 12)
    return MultibootHeader(1, offset, LoadAddresses(header, load, load_end, bss_end), entry)


def _read_2(file: BootFile, start: bytes, offset: int, architecture: int, length: int) -> MultibootHeader:
    if architecture != _ARCHITECTURE_I386:
        raise UnsupportedImage(
            f"the kernel {file.path} is for multiboot architecture {architecture}, not i386"
        )
    if length < 16 or offset + length > len(start):
        raise CorruptImage(f"the kernel {file.path} is damaged: header_length of multiboot2 is {length}")
    addresses: LoadAddresses | None = None
    entry: int | None = None
    for kind, optional, body in _tags(file, start[offset + 16 : offset + length]):
        if kind == _TAG_ADDRESS:
            addresses = LoadAddresses(*struct.unpack("<IIII", _sized(file, kind, body, 16)))
        elif kind == _TAG_ENTRY:
            (entry,) = struct.unpack("<I", _sized(file, kind, body, 4))
        elif kind == _TAG_REQUEST and not optional:
            _check_requests(file, body)
        elif kind not in (_TAG_REQUEST, *_IGNORED_TAGS) and not optional:
            raise UnsupportedImage(
                f"the kernel {file.path} requires multiboot2 tag {kind}, which is not known"
            )
    if addresses is not None and entry is None:
        raise CorruptImage(f"the kernel {file.path} is damaged: multiboot2 addresses without an entry")
    return MultibootHeader(2, offset, addresses, entry)


def _sized(file: BootFile, kind: int, body: bytes, size: int) -> bytes:
    if len(body) < size:
        raise CorruptImage(f"the kernel {file.path} is damaged: multiboot2 tag {kind} has {len(body)} bytes")
    return body[:size]


def _tags(file: BootFile, data: bytes) -> Iterator[tuple[int, bool, bytes]]:
    """(type, whether it is optional, content) of each tag up to the last."""
    offset = 0
    while offset + 8 <= len(data):
        kind, flags, size = struct.unpack_from("<HHI", data, offset)
        if kind == _TAG_END:
            return
        if size < 8 or offset + size > len(data):
            raise CorruptImage(f"the kernel {file.path} is damaged: multiboot2 tag {kind} has size {size}")
        yield kind, bool(flags & _TAG_OPTIONAL), data[offset + 8 : offset + size]
        offset += size + 7 & ~7


def _check_requests(file: BootFile, body: bytes) -> None:
    for (kind,) in struct.iter_unpack("<I", body[: len(body) & ~3]):
        if kind > _LAST_INFORMATION:
            raise UnsupportedImage(f"the kernel {file.path} requires multiboot2 information of type {kind}")


def place(file: BootFile, header: MultibootHeader, addresses: LoadAddresses) -> tuple[int, int, int, int]:
    """(offset in the file, address, bytes from the file, bytes of memory) of a kernel with addresses.

    Raises:
        CorruptImage: They contradict each other.
    """
    load = addresses.header - header.offset if addresses.load == _WHOLE_FILE else addresses.load
    offset = header.offset - (addresses.header - load)
    if not 0 <= load <= addresses.header or not 0 <= offset < file.size:
        raise CorruptImage(
            f"the kernel {file.path} is damaged: multiboot load_addr {addresses.load:#x} "
            f"and header_addr {addresses.header:#x} do not fit its header at {header.offset:#x}"
        )
    size = addresses.load_end - load if addresses.load_end else file.size - offset
    if size < 0 or offset + size > file.size:
        raise CorruptImage(
            f"the kernel {file.path} is truncated: multiboot load_end_addr is {addresses.load_end:#x}, "
            f"the file ends at {load + file.size - offset:#x}"
        )
    return offset, load, size, max(size, addresses.bss_end - load)
