"""Which frames are received, and how they are laid into descriptors.

Reference: Intel 317453-006 §3.2 "Packet Reception", §13.4.23 "RCTL", §13.5.1 "MTA".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Final

from sublet.devices.net.e1000 import registers as r

DESCRIPTOR_SIZE: Final = 16
STATUS_DD, STATUS_EOP, STATUS_IXSM, STATUS_VP = 1, 2, 4, 8
_MIN_FRAME: Final = 60
_MAX_FRAME: Final = 1518
"""Bytes without checksum, a VLAN tag included; longer ones need RCTL.LPE."""
_MAX_LONG_FRAME: Final = 16384 - 4
_MULTICAST_SHIFTS: Final = (4, 3, 2, 0)
_BUFFER_SIZES: Final = ((2048, 1024, 512, 256), (2048, 16384, 8192, 4096))


def buffer_size(rctl: int) -> int:
    """Bytes of every receive buffer."""
    return _BUFFER_SIZES[bool(rctl & r.RCTL_BSEX)][rctl >> 16 & 3]


def wants(frame: bytes, registers: Mapping[int, int]) -> bool:
    """Whether the filters let a frame pass."""
    rctl = registers[r.RCTL]
    limit = _MAX_LONG_FRAME if rctl & r.RCTL_LPE else _MAX_FRAME
    if len(frame) > limit or not _wants_vlan(frame, registers):
        return False
    if not frame[0] & 1:
        return bool(rctl & r.RCTL_UPE) or _is_exact(frame[:6], registers)
    if frame[:6] == b"\xff" * 6:
        return bool(rctl & (r.RCTL_BAM | r.RCTL_MPE))
    return bool(rctl & r.RCTL_MPE) or _is_exact(frame[:6], registers) or _is_hashed(frame, registers)


def _wants_vlan(frame: bytes, registers: Mapping[int, int]) -> bool:
    tagged = int.from_bytes(frame[12:14], "big") == registers[r.VET]
    if not registers[r.RCTL] & r.RCTL_VFE or not tagged or len(frame) < 16:
        return True
    vlan = int.from_bytes(frame[14:16], "big") & 0xFFF
    return bool(registers[r.VFTA + 4 * (vlan >> 5)] >> (vlan & 31) & 1)


def _is_exact(address: bytes, registers: Mapping[int, int]) -> bool:
    low, high = struct.unpack("<IH", address)
    return any(
        registers[entry] == low and registers[entry + 4] & (r.RAH_AV | 0xFFFF) == r.RAH_AV | high
        for entry in range(r.RAL, r.RAL + 8 * r.RAR_ENTRIES, 8)
    )


def _is_hashed(frame: bytes, registers: Mapping[int, int]) -> bool:
    shift = _MULTICAST_SHIFTS[registers[r.RCTL] >> 12 & 3]
    bit = (frame[5] << 8 | frame[4]) >> shift & 0xFFF
    return bool(registers[r.MTA + 4 * (bit >> 5)] >> (bit & 31) & 1)


def prepare(frame: bytes, registers: Mapping[int, int]) -> tuple[bytes, int, int]:
    """(what goes into buffers, status bits, VLAN tag): padded, with a checksum, its tag out if asked."""
    status = tag = 0
    if registers[r.CTRL] & r.CTRL_VME and int.from_bytes(frame[12:14], "big") == registers[r.VET]:
        status, tag = STATUS_VP, int.from_bytes(frame[14:16], "big")
        frame = frame[:12] + frame[16:]
    frame = frame.ljust(_MIN_FRAME, b"\0")
    if not registers[r.RCTL] & r.RCTL_SECRC:
        frame += zlib.crc32(frame).to_bytes(4, "little")
    return frame, status, tag


def pack_completion(length: int, status: int, tag: int) -> bytes:
    """The second half of a descriptor: length, checksum, status, errors, tag."""
    return struct.pack("<HHBBH", length, 0, status, 0, tag)
