"""Network cards that firmware can boot from: iPXE as their expansion ROM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sublet.devices.pci import PciDevice
from sublet.devices.pci import config_space as cs
from sublet.errors import UsageError
from sublet.machine.firmware import NETWORK_ROMS, find_image
from sublet.machine.memory import DeviceMemory

if TYPE_CHECKING:
    from sublet.machine.firmware_board import FirmwareBoard

_E1000: Final = (0x8086, 0x100E)
_PAGE_SIZE: Final = 4096


def add_boot_roms(board: FirmwareBoard, cards: Sequence[PciDevice]) -> None:
    """Give network cards their ROM, if the user wants to boot from the network and this host has it.

    Raises:
        UsageError: The network comes first, and the BIOS can boot from none of the cards.
    """
    if "network" not in board.config.boot:
        return
    path = find_image(NETWORK_ROMS, board.config.firmware_folders)
    able = [card for card in cards if _identity(card) == _E1000]
    if board.config.boot[0] == "network" and board.config.firmware != "uefi":
        _check(able, installed=path is not None)
    if path is not None:
        image = path.read_bytes()
        size = max(1 << (len(image) - 1).bit_length(), _PAGE_SIZE)
        for card in able:
            card.add_rom(image, DeviceMemory(board.memory, size))


def _check(able: list[PciDevice], *, installed: bool) -> None:
    if not able:
        raise UsageError(
            "the BIOS can boot from no network card of this machine",
            remedy="Give --net nat,model=e1000 with the bootfile, or --firmware uefi.",
        )
    if not installed:
        raise UsageError(
            "this host has no ROM for network cards to boot with", remedy="Install the package ipxe-qemu."
        )


def _identity(card: PciDevice) -> tuple[int, int]:
    return card.config.get(cs.VENDOR_ID, 2), card.config.get(cs.DEVICE_ID, 2)
