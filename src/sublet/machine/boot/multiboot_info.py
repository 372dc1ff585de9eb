"""What a Multiboot loader tells the kernel: memory, command line, modules.

There is no framebuffer and no boot device: a kernel that asks for video finds none in the information.

Reference: Multiboot Specification 0.6.96 §3.3 "Boot information format"; Multiboot2 Specification 2.0 §3.6.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from sublet.machine import memory_map as mm

LOADER_NAME: Final = b"sublet"
_HAS_MEMORY, _HAS_CMDLINE, _HAS_MODULES, _HAS_MAP, _HAS_NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
_INFO_1: Final = struct.Struct("<IIIIIII16xIIIIIII")
_INFO_1_SIZE: Final = 120
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


def build_info_1(gpa: int, cmdline: bytes, modules: list[Module], layout: mm.MemoryMap) -> bytes:
    """The information structure of version 1 with all that it points to, for the address ``gpa``."""
    blob = _Blob(gpa, _INFO_1_SIZE)
    rows = [
        struct.pack("<IIII", module.start, module.end, blob.add(module.text + b"\0"), 0) for module in modules
    ]
    entries = [struct.pack("<IQQI", 20, e.gpa, e.size, e.kind) for e in layout.e820()]
    table = b"".join(entries)
    flags = _HAS_MEMORY | _HAS_CMDLINE | _HAS_MODULES | _HAS_MAP | _HAS_NAME
    low, high = _basic_memory(layout)
    info = _INFO_1.pack(
        flags,
        low,
        high,
        0,
        blob.add(cmdline + b"\0"),
        len(modules),
        blob.add(b"".join(rows)),
        len(table),
        blob.add(table),
        0,
        0,
        0,
        blob.add(LOADER_NAME + b"\0"),
        0,
    )
    blob.data[: len(info)] = info
    return bytes(blob.data)


def _basic_memory(layout: mm.MemoryMap) -> tuple[int, int]:
    """KiB from 0 and from 1 MiB on."""
    return mm.EBDA_BASE // mm.KIB, (layout.low_ram_end - mm.HIGH_MEMORY) // mm.KIB


def build_info_2(cmdline: bytes, modules: list[Module], layout: mm.MemoryMap, rsdp: bytes) -> bytes:
    """The information of version 2: tags; ``rsdp`` is the ACPI pointer itself, 36 bytes."""
    tags = [
        _tag(1, cmdline + b"\0"),
        _tag(2, LOADER_NAME + b"\0"),
        _tag(4, struct.pack("<II", *_basic_memory(layout))),
    ]
    tags += [
        _tag(3, struct.pack("<II", module.start, module.end) + module.text + b"\0") for module in modules
    ]
    entries = [struct.pack("<QQII", e.gpa, e.size, e.kind, 0) for e in layout.e820()]
    tags.append(_tag(6, struct.pack("<II", 24, 0) + b"".join(entries)))
    old = rsdp[15] == 0
    tags.append(_tag(14 if old else 15, rsdp[: _RSDP_1_SIZE if old else _RSDP_2_SIZE]))
    tags.append(_tag(0, b""))
    body = b"".join(tags)
    return struct.pack("<II", 8 + len(body), 0) + body


def _tag(kind: int, content: bytes) -> bytes:
    tag = struct.pack("<II", kind, 8 + len(content)) + content
    return tag + bytes(-len(tag) % 8)
