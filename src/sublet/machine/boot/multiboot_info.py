"""What a Multiboot loader tells the kernel: memory, command line, modules.

There is no framebuffer and no boot device: a kernel that asks for video finds none in the information.

Reference: Multiboot Specification 0.6.96 §3.3 "Boot information format"; Multiboot2 Specification 2.0 §3.6.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sublet.machine import memory_map as mm

LOADER_NAME: Final = b"sublet"
_HAS_MEMORY, _HAS_CMDLINE, _HAS_MODULES, _HAS_MAP, _HAS_NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
_INFO_1: Final = struct.Struct("<IIIIIII16xIIIIIII")
_INFO_1_SIZE: Final = 120
_BASIC_MEMORY_1, _MAP_LENGTH_1 = 4, 44
_RSDP_1_SIZE, _RSDP_2_SIZE = 20, 36


@dataclass(frozen=True, slots=True)
class Module:
    """A loaded module; ``text`` is its file's name and the user's arguments."""

    start: int
    end: int
    text: bytes


class _Blob:
    """Bytes that will lie at an address, with strings and tables added at the end."""

    def __init__(self, gpa: int, size: int) -> None:
        self.gpa = gpa
        self.data = bytearray(size)

    def add(self, content: bytes) -> int:
        """Append, aligned to 8 bytes; returns the address."""
        self.data += bytes(-len(self.data) % 8)
        address = self.gpa + len(self.data)
        self.data += content
        return address


@dataclass(frozen=True, slots=True)
class Information:
    """What the kernel is told, and where in it is what only firmware knows; offsets in bytes."""

    data: bytes
    basic_memory: int
    """KiB of memory from 0 on, then from 1 MiB on; 32 bits each."""
    entries: int
    """The memory map's first entry, from its base on. `ENTRY_STRIDE` bytes further is the next one's."""
    lengths: tuple[int, ...]
    """32-bit fields that count the bytes of the map's entries, or more."""
    rsdp: tuple[int, int] | None = None
    """Where a copy of the RSDP goes, and how many bytes of it."""


ENTRY_STRIDE: Final = 24


def basic_memory(layout: mm.MemoryMap) -> tuple[int, int]:
    """KiB from 0 and from 1 MiB on."""
    return mm.EBDA_BASE // mm.KIB, (layout.low_ram_end - mm.HIGH_MEMORY) // mm.KIB


def build_info_1(
    gpa: int,
    cmdline: bytes,
    modules: Sequence[Module],
    basic: tuple[int, int],
    entries: Sequence[mm.E820Entry],
) -> Information:
    """The information structure of version 1 with all that it points to, for the address ``gpa``.

    The entries of the memory map come last.
    """
    blob = _Blob(gpa, _INFO_1_SIZE)
    rows = [
        struct.pack("<IIII", module.start, module.end, blob.add(module.text + b"\0"), 0) for module in modules
    ]
    flags = _HAS_MEMORY | _HAS_CMDLINE | _HAS_MODULES | _HAS_MAP | _HAS_NAME
    words, list_of_modules = blob.add(cmdline + b"\0"), blob.add(b"".join(rows))
    name = blob.add(LOADER_NAME + b"\0")
    table = b"".join(struct.pack("<IQQI", 20, e.gpa, e.size, e.kind) for e in entries)
    at = blob.add(table)
    memory_map = (len(table), at)
    info = _INFO_1.pack(flags, *basic, 0, words, len(modules), list_of_modules, *memory_map, 0, 0, 0, name, 0)
    blob.data[: len(info)] = info
    return Information(bytes(blob.data), _BASIC_MEMORY_1, at - gpa + 4, (_MAP_LENGTH_1,))


def build_info_2(
    cmdline: bytes,
    modules: Sequence[Module],
    basic: tuple[int, int],
    entries: Sequence[mm.E820Entry],
    rsdp: bytes,
) -> Information:
    """The information of version 2: tags; ``rsdp`` is the ACPI pointer itself, 36 bytes.

    The memory map is the last tag but that of the end.
    """
    old = rsdp[15] == 0
    size = _RSDP_1_SIZE if old else _RSDP_2_SIZE
    tags = [_tag(4, struct.pack("<II", *basic)), _tag(14 if old else 15, rsdp[:size])]
    tags += [_tag(1, cmdline + b"\0"), _tag(2, LOADER_NAME + b"\0")]
    tags += [
        _tag(3, struct.pack("<II", module.start, module.end) + module.text + b"\0") for module in modules
    ]
    head = b"".join(tags)
    table = b"".join(struct.pack("<QQII", e.gpa, e.size, e.kind, 0) for e in entries)
    body = head + _tag(6, struct.pack("<II", ENTRY_STRIDE, 0) + table) + _tag(0, b"")
    memory_map = 8 + len(head)
    rsdp_at = 8 + len(tags[0]) + 8
    return Information(
        struct.pack("<II", 8 + len(body), 0) + body, 16, memory_map + 16, (0, memory_map + 4), (rsdp_at, size)
    )


def _tag(kind: int, content: bytes) -> bytes:
    tag = struct.pack("<II", kind, 8 + len(content)) + content
    return tag + bytes(-len(tag) % 8)
