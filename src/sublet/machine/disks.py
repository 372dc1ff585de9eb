"""A machine's disks: images with the layers that the definition asks for."""

from __future__ import annotations

from sublet.block import BlockDevice, open_image
from sublet.block.hostfile import OsFiles
from sublet.block.layers import Throttle, Writethrough
from sublet.errors import ImageError
from sublet.machine.config import DiskConfig


def open_disk(disk: DiskConfig) -> BlockDevice:
    """Open the image, with its cache mode and limits.

    Raises:
        UsageError: Its format is unknown, or nobody said which it is.
        HostRefused: It cannot be opened, or is in use.
        ImageError: It is damaged or empty, or its chain of parents is not allowed.
    """
    files = OsFiles(direct=disk.cache == "none", sync=disk.cache != "unsafe")
    device: BlockDevice = open_image(disk.path, format=disk.format, readonly=disk.readonly, files=files)
    if not device.size:
        device.close()
        raise ImageError(f"the disk {disk.path} is smaller than a sector of 512 bytes")
    if disk.cache == "writethrough":
        device = Writethrough(device)
    if disk.iops or disk.bytes_per_second:
        device = Throttle(device, iops=disk.iops, bytes_per_second=disk.bytes_per_second)
    return device
