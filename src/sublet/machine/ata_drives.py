"""The drives of a machine's IDE controller, each in its place on the cables."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sublet.block import BlockDevice, open_image
from sublet.devices.storage import AtaDisk, AtapiCd
from sublet.devices.storage.taskfile import Drive
from sublet.errors import ImageError, UsageError
from sublet.machine.config import MachineConfig
from sublet.machine.disks import Drives

IDE_PLACES: Final = 4
_DISK_ORDER: Final = (0, 1, 2, 3)
_CD_ORDER: Final = (2, 3, 1, 0)
"""The first CD drive is the second cable's first device, as in most machines there were."""

_CD_SECTOR: Final = 2048
_RAW_CD_START: Final = b"\0" + b"\xff" * 10 + b"\0"
"""The synchronization field that begins a sector of 2352 bytes."""


def check_virtio_only(config: MachineConfig) -> None:
    """Refuse disks that hang on what the machine does not have.

    Raises:
        UsageError: One does.
    """
    for disk in config.disks:
        bus = config.bus_of(disk)
        if bus != "virtio":
            raise UsageError(
                f"the machine {config.machine} has no {bus} for the disk {disk.path} to hang on",
                remedy="Leave bus= out, or give --machine pc.",
            )


def ide_drives(config: MachineConfig, drives: Drives) -> list[Drive | None]:
    """Disks with ``bus=ide`` and all CDs, by place: first cable's two devices, then the second's.

    Args:
        config: The machine.
        drives: Opens the disks, as sda, sdb, ...

    Raises:
        UsageError: They are more than four.
        HostRefused: An image cannot be opened, or is in use.
        ImageError: An image is damaged, or not one.
    """
    places: list[Drive | None] = [None] * IDE_PLACES
    disks = [(index, disk) for index, disk in enumerate(config.disks) if config.bus_of(disk) == "ide"]
    _check_places(len(disks), len(config.cdroms))
    with ExitStack() as opened:
        for index, path in enumerate(config.cdroms):
            cd = AtapiCd(open_cd(path), serial=f"cd{index}")
            opened.callback(cd.close)
            places[_free(places, _CD_ORDER)] = cd
        for letter, (index, disk) in zip("abcd", disks, strict=False):
            serial = f"disk{index}" if disk.serial is None else disk.serial
            drive = AtaDisk(drives.open(disk, f"sd{letter}"), serial=serial)
            opened.callback(drive.close)
            places[_free(places, _DISK_ORDER)] = drive
        opened.pop_all()
    return places


def _check_places(disks: int, cds: int) -> None:
    if disks + cds > IDE_PLACES:
        raise UsageError(
            f"{disks} disks and {cds} CD drives are too many for IDE, which has places for {IDE_PLACES}",
            remedy="Give --disk FILE,bus=virtio to those of a system that has its drivers.",
        )


def _free(places: list[Drive | None], order: tuple[int, ...]) -> int:
    return next(place for place in order if places[place] is None)


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
