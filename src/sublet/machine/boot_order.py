"""The order in which firmware tries what a machine has, device by device.

Reference: QEMU docs/bootindex.rst and docs/specs/fw_cfg.rst; SeaBIOS docs "Boot order"; the names are
those of IEEE 1275 (Open Firmware).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sublet.devices.pci import PciDevice
from sublet.devices.pci import config_space as cs
from sublet.errors import UsageError
from sublet.machine.ata_drives import drive_places
from sublet.machine.config import DiskBus, MachineConfig
from sublet.machine.firmware_kernel import ROM_BOOT_PATH

if TYPE_CHECKING:
    from sublet.machine.firmware_board import FirmwareBoard

_ROOT: Final = "/pci@i0cf8"
_BLOCK_CLASS, _ETHERNET_CLASS = 0x01, 0x02
_CONTROLLERS: Final[dict[DiskBus, str]] = {"ide": "ide@1,1", "ahci": "pci8086,2922@1f,2"}
_ISA_BRIDGES: Final = {"pc": "isa@1", "q35": "isa@1f"}


def boot_paths(board: FirmwareBoard, cards: Sequence[tuple[int, PciDevice]]) -> list[str]:
    """Names of the devices to try first, in order.

    The BIOS tries what is not named in the order of kinds that it finds in CMOS RAM. OVMF reads names alone,
    drops what they leave out, and has an order of its own from earlier runs: once it is given names, it is
    given all of them.

    Args:
        board: The machine, which may have a kernel to start instead.
        cards: Slot and function of each card.

    Raises:
        UsageError: The order names a device that the machine does not have.
    """
    config = board.config
    if config.kernel is not None:
        return [] if config.is_uefi else [ROM_BOOT_PATH]
    if not config.boot:
        return []
    known = {
        "disk": _disks(config, _slots(cards, _BLOCK_CLASS)),
        "cdrom": _cdroms(config),
        "floppy": _floppies(config),
        "network": [f"{_ROOT}/ethernet@{slot:x}/ethernet-phy@0" for slot in _slots(cards, _ETHERNET_CLASS)],
    }
    _check_some(config.boot, known)
    if not (config.is_uefi or any(":" in device for device in config.boot)):
        return []
    order = [*config.boot, *known] if config.is_uefi else config.boot
    return list(dict.fromkeys(path for device in order for path in _find(known, device)))


def _check_some(boot: Sequence[str], known: dict[str, list[str]]) -> None:
    """Refuse an order that names no device of this machine."""
    if any(known[device.partition(":")[0]] for device in boot):
        return
    there = [kind for kind, paths in known.items() if paths]
    remedy = f"This machine has {', '.join(there)}." if there else "Give --disk, --cdrom or --floppy."
    raise UsageError(f"--boot {','.join(boot)}: this machine has no such device", remedy=remedy)


def _slots(cards: Sequence[tuple[int, PciDevice]], base_class: int) -> list[int]:
    return [slot for slot, card in cards if card.config.get(cs.CLASS_CODE + 2, 1) == base_class]


def _find(known: dict[str, list[str]], device: str) -> list[str]:
    """The paths of ``disk`` (all of them) or ``disk:2`` (the second)."""
    kind, _, number = device.partition(":")
    paths = known[kind]
    if not number:
        return paths
    if int(number) > len(paths):
        raise UsageError(
            f"--boot {device}: there is no such device", remedy=f"This machine has {len(paths)} of that kind."
        )
    return [paths[int(number) - 1]]


def _disks(config: MachineConfig, virtio_slots: list[int]) -> list[str]:
    """In the order of the definition, whatever they hang on."""
    bus = _own_bus(config)
    virtio = iter(f"{_ROOT}/scsi@{slot:x}/disk@0,0" for slot in virtio_slots)
    own = sum(config.bus_of(disk) == bus for disk in config.disks)
    places = iter(drive_places(bus, own, len(config.cdroms))[0])
    return [
        next(virtio) if config.bus_of(disk) == "virtio" else _drive(bus, next(places))
        for disk in config.disks
    ]


def _cdroms(config: MachineConfig) -> list[str]:
    bus = _own_bus(config)
    return [_drive(bus, place) for place in drive_places(bus, 0, len(config.cdroms))[1]]


def _own_bus(config: MachineConfig) -> DiskBus:
    return "ide" if config.machine == "pc" else "ahci"


def _drive(bus: DiskBus, place: int) -> str:
    """IDE has two devices a cable, AHCI one a port."""
    cable, device = divmod(place, 2) if bus == "ide" else (place, 0)
    return f"{_ROOT}/{_CONTROLLERS[bus]}/drive@{cable:x}/disk@{device:x}"


def _floppies(config: MachineConfig) -> list[str]:
    bridge = _ISA_BRIDGES[config.machine]
    return [f"{_ROOT}/{bridge}/fdc@03f0/floppy@{number}" for number in range(len(config.floppies))]
