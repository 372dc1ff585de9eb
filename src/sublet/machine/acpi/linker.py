"""ACPI and MP tables for firmware to place: files of fw_cfg, and the script that links them.

Reference: QEMU docs/specs/acpi_*; SeaBIOS src/fw/romfile_loader.h, whose commands these are. Firmware
allocates each file where it likes, adds its address to the pointers named, and fixes checksums.
"""

from __future__ import annotations

import struct
from typing import Final

from sublet.machine.mp_table import POINTER_ADDRESS, POINTER_CHECKSUM, POINTER_SIZE

TABLES_FILE: Final = "etc/acpi/tables"
RSDP_FILE: Final = "etc/acpi/rsdp"
MP_TABLE_FILE: Final = "etc/mp/table"
MP_POINTER_FILE: Final = "etc/mp/pointer"
LOADER_FILE: Final = "etc/table-loader"

_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM = 1, 2, 3
_ZONE_HIGH, _ZONE_BIOS = 1, 2
_ENTRY_SIZE: Final = 128
_NAME_SIZE: Final = 56
_ALIGNMENT: Final = 64
_CHECKSUM_OFFSET: Final = 9


class Linker:
    """Collects tables into one file, and the commands to link them."""

    def __init__(self) -> None:
        self.tables = bytearray()
        self._commands: list[bytes] = []
        self._allocate(TABLES_FILE, _ALIGNMENT, _ZONE_HIGH)
        self._allocate(RSDP_FILE, 16, _ZONE_BIOS)

    def place(self, table: bytes) -> int:
        """Append a table; returns its offset in the file."""
        self.tables += bytes(-len(self.tables) % _ALIGNMENT)
        offset = len(self.tables)
        self.tables += table
        return offset

    def place_linked(self, table: bytes, pointers: list[tuple[int, int]]) -> int:
        """Append a table with pointers in it.

        Args:
            table: With the offset of what each points at in its place.
            pointers: Offset in the table and size in bytes of each pointer.
        """
        start = self.place(table)
        for offset, size in pointers:
            self._add_pointer(TABLES_FILE, start + offset, size)
        self.tables[start + _CHECKSUM_OFFSET] = 0
        self._add_checksum(TABLES_FILE, start + _CHECKSUM_OFFSET, start, len(table))
        return start

    def link_rsdp(self, rsdp: bytes) -> bytes:
        """The root pointer's file, revision 2, with its two pointers and checksums."""
        data = bytearray(rsdp)
        data[8] = data[32] = 0
        self._add_pointer(RSDP_FILE, 16, 4)
        self._add_pointer(RSDP_FILE, 24, 8)
        self._add_checksum(RSDP_FILE, 8, 0, 20)
        self._add_checksum(RSDP_FILE, 32, 0, 36)
        return bytes(data)

    def link_mp_pointer(self, pointer: bytes) -> bytes:
        """The file of the MP table's pointer. A BIOS places it below its own, so that it is found first."""
        data = bytearray(pointer)
        data[POINTER_CHECKSUM] = 0
        self._allocate(MP_TABLE_FILE, 16, _ZONE_HIGH)
        self._allocate(MP_POINTER_FILE, 16, _ZONE_BIOS)
        self._add_pointer(MP_POINTER_FILE, POINTER_ADDRESS, 4, MP_TABLE_FILE)
        self._add_checksum(MP_POINTER_FILE, POINTER_CHECKSUM, 0, POINTER_SIZE)
        return bytes(data)

    def script(self) -> bytes:
        """The loader's file."""
        return b"".join(command.ljust(_ENTRY_SIZE, b"\0") for command in self._commands)

    def _allocate(self, file: str, alignment: int, zone: int) -> None:
        self._commands.append(struct.pack("<I56sIB", _ALLOCATE, _name(file), alignment, zone))

    def _add_pointer(self, file: str, offset: int, size: int, target: str = TABLES_FILE) -> None:
        names = _name(file), _name(target)
        self._commands.append(struct.pack("<I56s56sIB", _ADD_POINTER, *names, offset, size))

    def _add_checksum(self, file: str, offset: int, start: int, length: int) -> None:
        self._commands.append(struct.pack("<I56sIII", _ADD_CHECKSUM, _name(file), offset, start, length))


def _name(file: str) -> bytes:
    return file.encode().ljust(_NAME_SIZE, b"\0")
