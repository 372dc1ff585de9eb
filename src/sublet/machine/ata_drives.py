"""The drives of a machine's IDE or AHCI controller, each in its place."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sublet.block import BlockDevice, open_image
from sublet.devices.storage import AtaDisk, AtapiCd, ahci, ide
from sublet.devices.storage.cd import CdDrive
from sublet.devices.storage.taskfile import Drive
from sublet.errors import ImageError, UsageError
from sublet.machine.config import DiskBus, MachineConfig
from sublet.machine.disks import Drives
from sublet.machine.media import Media, MediaDrive

_PLACES: Final = {"ide": ide.CHANNELS * ide.DRIVES_A_CHANNEL, "ahci": ahci.PORTS}
_CD_ORDER: Final = {"ide": (2, 3, 1, 0), "ahci": (2, 3, 4, 5, 1, 0)}
"""The first CD drive is the second cable's first device, as in most machines there were."""

_CD_SECTOR: Final = 2048
_RAW_CD_START: Final = b"\0" + b"\xff" * 10 + b"\0"
"""The synchronization field that begins a sector of 2352 bytes."""


def ata_drives(config: MachineConfig, bus: DiskBus, drives: Drives, media: Media) -> list[Drive | None]:
    """The disks on a bus and all CDs, by place: disks from the first on.

    Args:
        config: The machine.
        bus: "ide" (places: first cable's two devices, then the second's) or "ahci" (ports).
        drives: Opens the disks, as sda, sdb, ...
        media: Lists the CD drives, as cdrom0, cdrom1, ...

    Raises:
        UsageError: They are more than there are places.
        HostRefused: An image cannot be opened, or is in use.
        ImageError: An image is damaged, or not one.
    """
    places: list[Drive | None] = [None] * _PLACES[bus]
    disks = [(index, disk) for index, disk in enumerate(config.disks) if config.bus_of(disk) == bus]
    _check_places(bus, len(disks), len(config.cdroms))
    disk_places, cd_places = drive_places(bus, len(disks), len(config.cdroms))
    with ExitStack() as opened:
        for index, path in enumerate(config.cdroms):
            disc = None if path is None else open_cd(path)
            cd = AtapiCd(disc, serial=f"cd{index}", serial_ata=bus == "ahci")
            opened.callback(cd.close)
            media.add(_media_drive(f"cdrom{index}", path, cd.drive))
            places[cd_places[index]] = cd
        for letter, place, (index, disk) in zip("abcdef", disk_places, disks, strict=False):
            serial = f"disk{index}" if disk.serial is None else disk.serial
            image = drives.open(disk, f"sd{letter}")
            drive = AtaDisk(image, serial=serial, serial_ata=bus == "ahci")
            opened.callback(drive.close)
            places[place] = drive
        opened.pop_all()
    return places


def _media_drive(name: str, path: Path | None, drive: CdDrive) -> MediaDrive:
    return MediaDrive(name, path, open_cd, drive.insert, lambda force: drive.eject(force=force))


def _check_places(bus: DiskBus, disks: int, cds: int) -> None:
    if disks + cds > _PLACES[bus]:
        raise UsageError(
            f"{disks} disks and {cds} CD drives are too many for {bus}, which has places for {_PLACES[bus]}",
            remedy="Give --disk FILE,bus=virtio to those of a system that has its drivers.",
        )


def drive_places(bus: DiskBus, disks: int, cds: int) -> tuple[list[int], list[int]]:
    """Where disks and CD drives go on "ide" or "ahci": CD drives first, disks from the first place left."""
    cd_places = list(_CD_ORDER[bus][:cds])
    left = [place for place in range(_PLACES[bus]) if place not in cd_places]
    return left[:disks], cd_places


def open_cd(path: Path) -> BlockDevice:
    """Open the image of a CD or DVD, 2048 bytes a sector.

    Raises:
        UsageError: Nobody said which format it is, and it looks like something other than raw.
        HostRefused: It cannot be opened.
        ImageError: It holds less than a sector, or sectors of 2352 bytes.
    """
    image = open_image(path, readonly=True)
    problem, remedy = _cd_problem(image)
    if problem:
        image.close()
        raise ImageError(f"the CD image {path} {problem}", remedy=remedy)
    return image


def _cd_problem(image: BlockDevice) -> tuple[str, str]:
    """What is wrong with an image, and what to do about it; empty when nothing is."""
    if image.size < _CD_SECTOR:
        return f"has {image.size} bytes, less than one sector of {_CD_SECTOR}", "Fetch or copy it again."
    if image.read(0, 512).startswith(_RAW_CD_START):
        return (
            "has raw sectors of 2352 bytes, not 2048",
            "Convert it, with bchunk for instance, and give the .iso file.",
        )
    return "", ""
