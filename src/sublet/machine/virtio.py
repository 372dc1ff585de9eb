"""The virtio devices of a machine, in the order of their PCI slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final

from sublet.devices.virtio import VirtioDevice
from sublet.devices.virtio.block.device import VirtioBlock
from sublet.devices.virtio.console.device import VirtioConsole
from sublet.devices.virtio.net.device import VirtioNet
from sublet.devices.virtio.rng.device import VirtioRng
from sublet.errors import UsageError
from sublet.hw import Clock
from sublet.machine.config import DiskConfig, MachineConfig
from sublet.machine.disks import Drives
from sublet.machine.host import WorkerPool

MAXIMUM_DEVICES: Final = 31
"""Slots of bus 0 beside the host bridge."""
_BLOCK_QUEUES_MAXIMUM: Final = 4


class VirtioDevices:
    """The random source, the console, then network cards and disks as the definition lists them.

    Args:
        config: The machine.
        cards: Its virtio network cards; closed with the others.
        write: Where ``hvc0`` writes.
        executor: Runs the devices' work; a disk's on threads of its own, so that none waits for another.
        clock: Time for those that need it.
        drives: Where the disks are listed, as vda, vdb, ...

    Raises:
        UsageError: Too many devices.
        HostRefused: A disk cannot be opened, or is in use.
        ImageError: A disk is not one.
    """

    def __init__(
        self,
        config: MachineConfig,
        cards: Sequence[VirtioNet],
        write: Callable[[bytes], None],
        executor: WorkerPool,
        clock: Clock,
        drives: Drives,
    ) -> None:
        self.console = VirtioConsole(write, executor)
        self.all: list[VirtioDevice] = [VirtioRng(executor, clock), self.console]
        disks = [(index, disk) for index, disk in enumerate(config.disks) if config.bus_of(disk) == "virtio"]
        count = len(self.all) + len(config.net) + len(disks)
        if count > MAXIMUM_DEVICES:
            raise UsageError(
                f"{len(config.net)} network cards and {len(disks)} disks are too many: "
                f"a machine has slots for {MAXIMUM_DEVICES - len(self.all)}"
            )
        with ExitStack() as opened:
            opened.callback(self.close)
            self.all += cards
            for index, disk in disks:
                self.all.append(_make_disk(index, disk, config.cpus, executor, drives))
            opened.pop_all()

    def close(self) -> None:
        """Close images and sockets. Idempotent."""
        with ExitStack() as closing:
            for device in self.all:
                closing.callback(device.close)


def _make_disk(index: int, disk: DiskConfig, cpus: int, executor: WorkerPool, drives: Drives) -> VirtioBlock:
    serial = f"disk{index}" if disk.serial is None else disk.serial
    queues = min(cpus, _BLOCK_QUEUES_MAXIMUM)
    device = drives.open(disk, f"vd{chr(ord('a') + index)}")
    return VirtioBlock(device, executor.branch(queues), serial=serial, queues=queues)
