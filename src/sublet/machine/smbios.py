"""SMBIOS tables: what the machine says of its make, for firmware to place.

Reference: DMTF DSP0134 3.6 "System Management BIOS Reference Specification" §5.2 "Table entry points", §6.1
"Structure standards", §7 "Structure definitions".
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import Final

TABLES_FILE: Final = "etc/smbios/smbios-tables"
ANCHOR_FILE: Final = "etc/smbios/smbios-anchor"

_NAMESPACE: Final = uuid.UUID("5b1f6d3e-30d9-4a37-9b0e-7b8f6f1a52c4")
_MAKER: Final = "sublet"
_VERSION: Final = "1"
"""The board's, not our release: a guest takes an update for no new hardware."""
_CHASSIS, _SOCKET_HANDLE, _ARRAY_HANDLE, _MODULE_HANDLE, _RANGE_HANDLE = 0x300, 0x400, 0x1000, 0x1100, 0x1300
_UNKNOWN: Final = 2
_OTHER: Final = 1
_NO_CACHE: Final = 0xFFFF
_MODULE_LIMIT_MIB: Final = 16 * 1024


@dataclass(frozen=True)
class SmbiosFiles:
    """Contents of the two files of fw_cfg."""

    anchor: bytes
    tables: bytes


def machine_uuid(name: str | None) -> uuid.UUID:
    """The same for a machine of the same name; without a name, the one that means "not set"."""
    return uuid.UUID(int=0) if name is None else uuid.uuid5(_NAMESPACE, name)


def build_smbios(
    *, machine: str, name: str | None, cpus: int, memory_mib: int, version_3: bool
) -> SmbiosFiles:
    """All structures, and an entry point whose address the firmware fills in.

    Args:
        machine: The board's name.
        name: The machine's own.
        cpus: Number of vCPUs, each in a socket.
        memory_mib: RAM, in modules of 16 GiB.
        version_3: A 64-bit entry point (3.0), else a 32-bit one (2.8).
    """
    structures = [
        _system(machine, name),
        _chassis(),
        *(_processor(index) for index in range(cpus)),
        *_memory(memory_mib),
        _structure(32, 0x2000, bytes(6) + b"\0"),
        _structure(127, 0x7F00, b""),
    ]
    tables = b"".join(structures)
    if version_3:
        return SmbiosFiles(_anchor_3(len(tables)), tables)
    return SmbiosFiles(_anchor_2(tables, max(map(len, structures)), len(structures)), tables)


def _structure(kind: int, handle: int, body: bytes, *strings: str) -> bytes:
    """Header, body, strings; §6.1.3 "Text strings"."""
    text = b"".join(string.encode("ascii", "replace") + b"\0" for string in strings) or b"\0"
    return struct.pack("<BBH", kind, 4 + len(body), handle) + body + text + b"\0"


def _system(machine: str, name: str | None) -> bytes:
    """Type 1 "System information"; the UUID's first three fields are little-endian."""
    body = struct.pack("<BBBB16sBBB", 1, 2, 3, 4, machine_uuid(name).bytes_le, 6, 0, 1)
    return _structure(1, 0x100, body, _MAKER, machine, _VERSION, name or "none")


def _chassis() -> bytes:
    """Type 3 "System enclosure or chassis": other, all states safe."""
    body = struct.pack("<BBBBBBBBBIBBBBB", 1, _OTHER, 2, 0, 0, 3, 3, 3, _UNKNOWN, 0, 0, 0, 0, 0, 0)
    return _structure(3, _CHASSIS, body, _MAKER, _VERSION)


def _processor(index: int) -> bytes:
    """Type 4 "Processor information", version 2.6: one core in a populated socket, enabled."""
    central, family_unknown, populated = 3, 2, 0x41
    head = struct.pack("<BBBBQBBHHH", 1, central, family_unknown, 2, 0, 3, 0, 0, 2000, 2000)
    tail = struct.pack("<BBHHHBBBBBBHH", populated, _OTHER, *(_NO_CACHE,) * 3, 0, 0, 0, 1, 1, 1, 4, 2)
    return _structure(4, _SOCKET_HANDLE + index, head + tail, f"CPU {index}", _MAKER, _VERSION)


def _memory(memory_mib: int) -> list[bytes]:
    """Types 16, 17 and 19: an array, its modules, the addresses that it maps."""
    sizes = [_MODULE_LIMIT_MIB] * (memory_mib // _MODULE_LIMIT_MIB)
    if memory_mib % _MODULE_LIMIT_MIB:
        sizes.append(memory_mib % _MODULE_LIMIT_MIB)
    total_kib = memory_mib * 1024
    array = struct.pack("<BBBIHHQ", 1, 3, 6, min(total_kib, 0x8000_0000), 0xFFFE, len(sizes), 0)
    modules = [
        _structure(17, _MODULE_HANDLE + index, _module(size), f"DIMM {index}", _MAKER)
        for index, size in enumerate(sizes)
    ]
    mapped = struct.pack("<IIHB", 0, min(total_kib, 1 << 32) - 1, _ARRAY_HANDLE, 1)
    return [_structure(16, _ARRAY_HANDLE, array), *modules, _structure(19, _RANGE_HANDLE, mapped)]


def _module(size_mib: int) -> bytes:
    """Type 17 "Memory device", version 2.8: RAM in a DIMM, of no known speed."""
    dimm, ram = 9, 7
    head = struct.pack("<HHHHHBBBBBH", _ARRAY_HANDLE, 0xFFFE, 0xFFFF, 0xFFFF, size_mib, dimm, 0, 1, 0, ram, 2)
    return head + struct.pack("<HBBBBBIHHHH", 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def _anchor_2(tables: bytes, largest: int, count: int) -> bytes:
    """§5.2.1 "SMBIOS 2.1 (32-bit) entry point", version 2.8; address 0."""
    middle = struct.pack("<5sBHIHB", b"_DMI_", 0, len(tables), 0, count, 0x28)
    middle = middle[:5] + bytes((-sum(middle) & 0xFF,)) + middle[6:]
    head = struct.pack("<4sBBBBHB5s", b"_SM_", 0, 0x1F, 2, 8, largest, 0, bytes(5))
    whole = head + middle
    return whole[:4] + bytes((-sum(whole) & 0xFF,)) + whole[5:]


def _anchor_3(size: int) -> bytes:
    """§5.2.2 "SMBIOS 3.0 (64-bit) entry point"; address 0."""
    whole = struct.pack("<5sBBBBBBBIQ", b"_SM3_", 0, 0x18, 3, 0, 0, 1, 0, size, 0)
    return whole[:5] + bytes((-sum(whole) & 0xFF,)) + whole[6:]
