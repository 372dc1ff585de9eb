"""The option ROM by which the BIOS starts a kernel: it copies what fw_cfg holds and enters it.

Reference: Plug and Play BIOS Specification 1.0A §3.2 "Expansion Header for Plug and Play"; BIOS Boot
Specification 1.01 §3.3 "Devices with Option ROMs"; Linux 6.1 Documentation/x86/boot.rst "Running the kernel".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from sublet.devices.platform.fw_cfg import transfer_command

SETUP_GPA: Final = 0x10000
"""Where the kernel's real-mode part goes; segments 1000h (data, stack) and 1020h (code)."""
STACK_OFFSET: Final = 0xE000
"""Its first stack pointer, the end of its heap, in that segment."""

MAXIMUM_COPIES: Final = 960
"""Few enough for a ROM of 16 KiB."""

_PNP_OFFSET: Final = 0x20
_COUNT_OFFSET: Final = 0x40
_ENTRY_OFFSET: Final = 0x50
_NAME_OFFSET: Final = 0x1E0
_TABLE_OFFSET: Final = 0x200
_BLOCK: Final = 512
_NAME: Final = b"kernel\0"
_BOOT_DEVICE: Final = bytes((0x80, 0x00, 0x00))
"""Device type: other; no class of its own."""

Code = tuple[tuple[str, str], ...]
"""Machine code, byte for byte in hexadecimal, and the instruction that it is."""

COPY: Final = (
    ("eb02", "jmp begin"),
    ("cd18", "failed: int 0x18"),
    ("fc", "begin: cld"),
    ("31c0", "xor ax, ax"),
    ("8ec0", "mov es, ax"),
    ("be0002", "mov si, 0x200"),
    ("2e8b2e4000", "mov bp, word ptr cs:[0x40]"),
    # For each entry of the table: give fw_cfg a copy of it in RAM, as the ROM cannot be written.
    ("bf0006", "copy: mov di, 0x600"),
    ("b90800", "mov cx, 8"),
    ("2ef3a5", "rep movsw es:[di], cs:[si]"),
    ("ba1405", "mov dx, 0x514"),
    ("6631c0", "xor eax, eax"),
    ("66ef", "out dx, eax"),
    ("b218", "mov dl, 0x18"),
    ("66b800000600", "mov eax, 0x00060000"),
    ("66ef", "out dx, eax"),
    # Done when the command is 0; its lowest bit, big-endian, is an error's.
    ("2666a10006", "poll: mov eax, es:[0x600]"),
    ("66a9fffffffe", "test eax, 0xfeffffff"),
    ("75f3", "jnz poll"),
    ("6685c0", "test eax, eax"),
    ("75c4", "jnz failed"),
    ("4d", "dec bp"),
    ("75d0", "jnz copy"),
)
"""What the BIOS calls to boot starts so, and goes on when everything is in its place. If a copy fails,
INT 18h has the BIOS try the next device."""

LINUX_ENTRY: Final = (
    ("fa", "cli"),
    ("b80010", "mov ax, 0x1000"),
    ("8ed8", "mov ds, ax"),
    ("8ec0", "mov es, ax"),
    ("8ee0", "mov fs, ax"),
    ("8ee8", "mov gs, ax"),
    ("8ed0", "mov ss, ax"),
    ("bc00e0", "mov sp, 0xe000"),
    ("ea00002010", ".byte 0xea; .word 0, 0x1020"),
)
"""Enters the kernel's 16-bit code by a far jump."""


class Copy(NamedTuple):
    """A part of the kernel: an item of fw_cfg, its size in bytes, and where it goes."""

    item: int
    size: int
    gpa: int


def build_kernel_rom(copies: Sequence[Copy], entry: Code = LINUX_ENTRY) -> bytes:
    """The ROM's image, with a boot entry vector that makes the copies and goes on with ``entry``.

    Raises:
        ValueError: There are more copies than its table may hold, or none.
    """
    if not 1 <= len(copies) <= MAXIMUM_COPIES:
        raise ValueError(f"{len(copies)} copies: the table holds 1 to {MAXIMUM_COPIES}")
    # The last byte is the checksum.
    blocks = (_TABLE_OFFSET + 16 * len(copies)) // _BLOCK + 1
    rom = bytearray(blocks * _BLOCK)
    rom[0:4] = bytes((0x55, 0xAA, blocks, 0xCB))
    struct.pack_into("<H", rom, 0x1A, _PNP_OFFSET)
    _put(rom, _PNP_OFFSET, _pnp_header())
    struct.pack_into("<H", rom, _COUNT_OFFSET, len(copies))
    _put(rom, _ENTRY_OFFSET, bytes.fromhex("".join(code for code, _ in (*COPY, *entry))))
    _put(rom, _NAME_OFFSET, _NAME)
    _put(rom, _TABLE_OFFSET, b"".join(transfer_command(*copy) for copy in copies))
    rom[-1] = -sum(rom) & 0xFF
    return bytes(rom)


def _pnp_header() -> bytes:
    """Names a boot entry vector, and nothing that could be disconnected."""
    header = bytearray(32)
    struct.pack_into("<4sBBH", header, 0, b"$PnP", 1, len(header) // 16, 0)
    struct.pack_into("<H", header, 0x10, _NAME_OFFSET)
    header[0x12:0x15] = _BOOT_DEVICE
    struct.pack_into("<H", header, 0x1A, _ENTRY_OFFSET)
    header[9] = -sum(header) & 0xFF
    return bytes(header)


def _put(rom: bytearray, offset: int, piece: bytes) -> None:
    rom[offset : offset + len(piece)] = piece
