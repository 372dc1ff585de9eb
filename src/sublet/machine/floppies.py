"""The floppy controller of a machine, with its DMA channel and drives."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sublet.block import BlockDevice, open_image
from sublet.devices.legacy import dma
from sublet.devices.legacy.dma import IsaDma
from sublet.devices.storage import FloppyController, FloppyDrive, fdc
from sublet.devices.storage.floppy import FORMATS, format_of_size
from sublet.errors import ImageError
from sublet.hw import GuestMemory
from sublet.machine.bus import PortBus
from sublet.machine.config import MachineConfig
from sublet.machine.host import GsiLine, WorkerPool
from sublet.machine.media import Media, MediaDrive

CMOS_FLOPPY_TYPES: Final = 0x10
"""Byte of the CMOS RAM: the type of drive A in the upper half, of drive B in the lower."""


def open_floppy(path: Path) -> BlockDevice:
    """The image of a disk; write-protected where the host does not let us write.

    Raises:
        UsageError: Nobody said which format the image is, and it looks like something other than raw.
        HostRefused: It cannot be opened, or is in use.
        ImageError: It is empty, or larger than any floppy disk.
    """
    image = open_image(path, readonly=path.exists() and not os.access(path, os.W_OK))
    try:
        if not image.size:
            raise ImageError(f"the floppy image {path} has less than one sector of 512 bytes")
        if format_of_size(image.size) is None:
            largest = max(layout.size for layout in FORMATS) // 1024
            raise ImageError(
                f"the floppy image {path} has {image.size} bytes, a floppy disk has at most {largest} KiB",
                remedy="Attach it as --disk or --cdrom.",
            )
        return image
    except BaseException:
        image.close()
        raise


class Floppies:
    """Controller, DMA and up to two drives, on the ports of the PC/AT.

    Raises:
        SubletError: A disk cannot be opened, as `open_floppy` has it.
    """

    def __init__(
        self,
        config: MachineConfig,
        ports: PortBus,
        irq: GsiLine,
        memory: GuestMemory,
        workers: WorkerPool,
        media: Media,
    ) -> None:
        drives: list[FloppyDrive] = []
        with ExitStack() as opened:
            for path in config.floppies:
                drives.append(FloppyDrive(None if path is None else open_floppy(path)))
                opened.callback(drives[-1].close)
            opened.pop_all()
        self.dma = IsaDma(memory)
        self.controller = FloppyController(drives, irq, self.dma.channel(fdc.DMA_CHANNEL), workers.branch(1))
        for number, path in enumerate(config.floppies):
            media.add(self._media_drive(number, path))
        ports.add(*dma.FIRST_PORTS, self.dma.first)
        ports.add(*dma.SECOND_PORTS, self.dma.second)
        ports.add(*dma.PAGE_PORTS, self.dma.pages)
        ports.add(fdc.FIRST_PORT, fdc.PORT_COUNT, self.controller)
        ports.add(fdc.DIR_PORT, 1, self.controller.direction)

    def _media_drive(self, number: int, path: Path | None) -> MediaDrive:
        """A floppy drive has no lock."""

        def insert(image: BlockDevice) -> None:
            self.controller.change(number, image)

        def eject(force: bool) -> bool:
            self.controller.change(number, None)
            return True

        return MediaDrive(f"floppy{number}", path, open_floppy, insert, eject)

    def cmos_bytes(self) -> list[tuple[int, int]]:
        """What tells firmware and systems which drives there are, as (index, value)."""
        first, second = (0 if drive is None else drive.drive_type for drive in self.controller.drives)
        return [(CMOS_FLOPPY_TYPES, first << 4 | second)]

    def close(self) -> None:
        """Flush and close the disks."""
        self.controller.close()
