"""Kernel images made up for the tests, as small as their headers allow."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


@dataclass
class Bzimage:
    """Fields of a synthetic bzImage; the defaults boot."""

    version: int = 0x020F
    loadflags: int = 1
    xloadflags: int = 3
    alignment: int = 0x20_0000
    relocatable: int = 1
    init_size: int = 0x10_0000
    pref_address: int = 0x100_0000
    cmdline_size: int = 2047
    initrd_addr_max: int = 0x7FFF_FFFF
    setup_sects: int = 1
    payload: bytes = b"\x90" * 64

    def build(self) -> bytes:
        image = bytearray((self.setup_sects + 1) * 512)
        image[0x1F1] = self.setup_sects
        struct.pack_into("<I", image, 0x1F4, len(self.payload) // 16)
        image[0x1FE:0x202] = b"\x55\xaa\xeb\x66"
        image[0x202:0x206] = b"HdrS"
        struct.pack_into("<H", image, 0x206, self.version)
        image[0x211] = self.loadflags
        struct.pack_into("<III", image, 0x22C, self.initrd_addr_max, self.alignment, 0)
        image[0x234] = self.relocatable
        struct.pack_into("<HI", image, 0x236, self.xloadflags, self.cmdline_size)
        struct.pack_into("<QI", image, 0x258, self.pref_address, self.init_size)
        return bytes(image) + self.payload


@dataclass
class Elf:
    """Fields of a synthetic ELF kernel with a PVH note; the defaults boot."""

    machine: int = 62
    is_64: bool = True
    kind: int = 2
    entry: int | None = 0x10_0000
    segments: list[tuple[int, bytes, int]] = field(default_factory=lambda: [(0x10_0000, b"\xf4" * 16, 4096)])
    """(p_paddr, contents, p_memsz)"""

    def build(self) -> bytes:
        header_size, entry_size = (64, 56) if self.is_64 else (52, 32)
        pieces = [(1, paddr, data, memsz) for paddr, data, memsz in self.segments]
        if self.entry is not None:
            note = struct.pack("<III4s", 4, 4, 18, b"Xen\0") + struct.pack("<I", self.entry)
            pieces.append((4, 0, note, len(note)))
        headers, body = b"", b""
        offset = header_size + entry_size * len(pieces)
        for kind, paddr, data, memsz in pieces:
            headers += self._program_header(kind, offset + len(body), paddr, len(data), memsz)
            body += data
        return self._header(header_size, entry_size, len(pieces)) + headers + body

    def _program_header(self, kind: int, offset: int, paddr: int, filesz: int, memsz: int) -> bytes:
        if self.is_64:
            return struct.pack("<IIQQQQQQ", kind, 5, offset, paddr, paddr, filesz, memsz, 4)
        return struct.pack("<IIIIIIII", kind, offset, paddr, paddr, filesz, memsz, 5, 4)

    def _header(self, header_size: int, entry_size: int, count: int) -> bytes:
        ident = b"\x7fELF" + bytes([2 if self.is_64 else 1, 1, 1]) + bytes(9)
        layout = "<HHIQQQIHHHHHH" if self.is_64 else "<HHIIIIIHHHHHH"
        fields = (self.kind, self.machine, 1, 0, header_size, 0, 0, header_size, entry_size, count, 0, 0, 0)
        return ident + struct.pack(layout, *fields)
