"""Network cards that firmware can boot from: iPXE as their expansion ROM."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sublet.devices.pci import PciDevice
from sublet.devices.pci import config_space as cs
from sublet.errors import UsageError
from sublet.machine.firmware import E1000_ROM, VIRTIO_ROM, find_image
from sublet.machine.memory import DeviceMemory

if TYPE_CHECKING:
    from sublet.machine.firmware_board import FirmwareBoard

_E1000: Final = (0x8086, 0x100E)
_VIRTIO: Final = ((0x1AF4, 0x1000), (0x1AF4, 0x1041))
"""Transitional and modern."""
_PAGE_SIZE: Final = 4096
_HEADER_SIZE: Final = 0x1A
_SPARE_BYTE: Final = 6
"""Behind the jump to the initialization code, and only summed."""


def add_boot_roms(board: FirmwareBoard, cards: Sequence[PciDevice]) -> None:
    """Give network cards their ROM, if the user wants to boot from the network and this host has it.

    UEFI drives virtio cards itself.

    Raises:
        UsageError: The network comes first, and the BIOS can boot from none of the cards.
    """
    config = board.config
    if "network" not in config.boot_kinds:
        return
    names = {_E1000: E1000_ROM}
    if not config.is_uefi:
        names |= dict.fromkeys(_VIRTIO, VIRTIO_ROM)
    able = [(card, names[_identity(card)]) for card in cards if _identity(card) in names]
    found = [(card, find_image(files, config.firmware_folders)) for card, files in able]
    if config.boot_kinds[0] == "network" and not config.is_uefi:
        _check(able=bool(able), installed=any(path is not None for _, path in found))
    for card, path in found:
        if path is not None:
            image = for_device(path.read_bytes(), *_identity(card))
            size = max(1 << (len(image) - 1).bit_length(), _PAGE_SIZE)
            card.add_rom(image, DeviceMemory(board.memory, size))


def for_device(rom: bytes, vendor_id: int, device_id: int) -> bytes:
    """The ROM with its first image made out to a function, as the BIOS runs no other.

    iPXE drives what it says it drives and more; of one ROM for transitional and modern cards, the BIOS sees
    one name. A byte that no code uses keeps the checksum right. What is no ROM is left as it is.

    Reference: PCI Firmware 3.0 §5.1.2 "PCI Data Structure".
    """
    if len(rom) < _HEADER_SIZE or rom[:2] != b"\x55\xaa":
        return rom
    (at,) = struct.unpack_from("<H", rom, 0x18)
    if rom[at : at + 4] != b"PCIR" or at + 8 > len(rom):
        return rom
    patched = bytearray(rom)
    struct.pack_into("<HH", patched, at + 4, vendor_id, device_id)
    before, after = sum(rom[at + 4 : at + 8]), sum(patched[at + 4 : at + 8])
    patched[_SPARE_BYTE] = (patched[_SPARE_BYTE] + before - after) & 0xFF
    return bytes(patched)


def _check(*, able: bool, installed: bool) -> None:
    if not able:
        raise UsageError(
            "the BIOS can boot from no network card of this machine",
            remedy="Give --net nat with the bootfile, or --firmware uefi.",
        )
    if not installed:
        raise UsageError(
            "this host has no ROM for network cards to boot with", remedy="Install the package ipxe-qemu."
        )


def _identity(card: PciDevice) -> tuple[int, int]:
    return card.config.get(cs.VENDOR_ID, 2), card.config.get(cs.DEVICE_ID, 2)
