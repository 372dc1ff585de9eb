"""A machine's disks: images with the layers that the definition asks for, by the names that users know."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from sublet.block import BlockDevice, open_image
from sublet.block.hostfile import OsFiles
from sublet.block.layers import CopyOnRead, Throttle, Writethrough
from sublet.block.live.drive import Drive
from sublet.errors import ImageError, UsageError
from sublet.machine.config import DiskBus, DiskConfig, MachineConfig, MachineName

_BUSES: Final[dict[MachineName, tuple[DiskBus, ...]]] = {
    "microvm": ("virtio",),
    "pc": ("virtio", "ide"),
    "q35": ("virtio", "ahci"),
}


def check_buses(config: MachineConfig) -> None:
    """Refuse disks that hang on what the machine does not have.

    Raises:
        UsageError: One does.
    """
    there = _BUSES[config.machine]
    for disk in config.disks:
        bus = config.bus_of(disk)
        if bus not in there:
            raise UsageError(
                f"the machine {config.machine} has no {bus} for the disk {disk.path} to hang on",
                remedy=f"Leave bus= out, or give one of {', '.join(there)}; pc has ide, q35 has ahci.",
            )


@dataclass(frozen=True)
class NamedDrive:
    """A disk of a machine."""

    name: str
    """As ``vda``."""
    config: DiskConfig
    """As it was opened."""
    drive: Drive

    def now(self) -> DiskConfig:
        """What opens the disk as it is now, after snapshots and moves."""
        from sublet.block.live.overlay import folders_of

        image = self.drive.image
        folders = tuple(folders_of(image)) or self.config.folders
        return replace(self.config, path=image.path, format=image.format, folders=folders)


class Drives:
    """The disks of one machine, while it is on."""

    def __init__(self) -> None:
        self.all: list[NamedDrive] = []

    def open(self, disk: DiskConfig, name: str) -> BlockDevice:
        """Open the image of a disk, with its cache mode and limits.

        Args:
            name: What users call the disk: ``vda``.

        Raises:
            UsageError: Its format is unknown, or nobody said which it is.
            HostRefused: It cannot be opened, or is in use.
            ImageError: It is damaged or empty, or its chain of parents is not allowed.
        """
        drive = _open_drive(disk)
        self.all.append(NamedDrive(name, disk, drive))
        return _with_layers(drive, disk)

    def find(self, name: str) -> Drive:
        """The disk of that name.

        Raises:
            UsageError: There is none.
        """
        for one in self.all:
            if one.name == name:
                return one.drive
        names = ", ".join(one.name for one in self.all) or "none"
        raise UsageError(f"this machine has no disk {name!r}; it has: {names}")

    def now(self, disks: tuple[DiskConfig, ...]) -> tuple[DiskConfig, ...]:
        """What opens the same disks as they are now."""
        opened = {id(one.config): one.now() for one in self.all}
        return tuple(opened.get(id(disk), disk) for disk in disks)


def open_disk(disk: DiskConfig) -> BlockDevice:
    """As ``Drives.open``, for a disk that nobody works on while the machine runs."""
    return _with_layers(_open_drive(disk), disk)


def _open_drive(disk: DiskConfig) -> Drive:
    files = OsFiles(direct=disk.cache == "none", sync=disk.cache != "unsafe")
    image = open_image(
        disk.path, format=disk.format, readonly=disk.readonly, files=files, folders=disk.folders
    )
    if not image.size:
        image.close()
        raise ImageError(f"the disk {disk.path} is smaller than a sector of 512 bytes")
    return Drive(image, files=files)


def _with_layers(drive: Drive, disk: DiskConfig) -> BlockDevice:
    device: BlockDevice = CopyOnRead(drive) if disk.copy_on_read and not disk.readonly else drive
    if disk.cache == "writethrough":
        device = Writethrough(device)
    if disk.iops or disk.bytes_per_second:
        device = Throttle(device, iops=disk.iops, bytes_per_second=disk.bytes_per_second)
    return device
