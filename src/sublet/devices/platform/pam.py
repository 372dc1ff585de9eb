"""Programmable attribute maps: seven configuration bytes that say what shows from 768 KiB to 1 MiB.

Reference: Intel 82441FX datasheet (290549) §3.2.17 "PAM[6:0] Programmable Attribute Map Registers".
"""

from __future__ import annotations

from typing import Final

from sublet.devices.pci.config_space import ConfigSpace

PAM_COUNT: Final = 7
PAM_SEGMENTS: Final = (
    *((0xC0000 + 0x4000 * index, 0x4000) for index in range(12)),
    (0xF0000, 0x10000),
)
"""Start and size of each segment, in order of address."""


def define_pam(config: ConfigSpace, offset: int) -> None:
    """Make the seven registers: the first has one segment, the others two."""
    config.define(offset, 1, 0, 0x30)
    for index in range(1, PAM_COUNT):
        config.define(offset + index, 1, 0, 0x33)


def read_pam(config: ConfigSpace, offset: int) -> tuple[int, ...]:
    """Two bits a segment of `PAM_SEGMENTS`: bit 0 reads from RAM, bit 1 writes to it."""
    first, *rest = (config.get(offset + index, 1) for index in range(PAM_COUNT))
    low = [bits for byte in rest for bits in (byte & 3, byte >> 4 & 3)]
    return (*low, first >> 4 & 3)


def save_pam(config: ConfigSpace, offset: int) -> bytes:
    """The registers, which outlive a reset of the machine: firmware goes on in what it has put into RAM."""
    return bytes(config.get(offset + index, 1) for index in range(PAM_COUNT))


def restore_pam(config: ConfigSpace, offset: int, saved: bytes) -> None:
    """Inverse of ``save_pam``."""
    for index, value in enumerate(saved):
        config.set(offset + index, 1, value)
