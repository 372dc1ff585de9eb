"""The virtio devices of a machine, in the order of their PCI slots."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sublet.devices.virtio import VirtioDevice
from sublet.devices.virtio.block.device import VirtioBlock
from sublet.devices.virtio.console.device import VirtioConsole
from sublet.devices.virtio.net.device import VirtioNet
from sublet.devices.virtio.rng.device import VirtioRng
from sublet.errors import UsageError
from sublet.hw import Clock, Executor
from sublet.machine.config import DiskConfig, MachineConfig
from sublet.machine.disks import open_disk
from sublet.net import NullSink, PacketSink, UnixSocketSink

MAXIMUM_DEVICES: Final = 31
"""Slots of bus 0 beside the host bridge."""
_BLOCK_QUEUES_MAXIMUM: Final = 4
_QEMU_OUI: Final = b"\x52\x54\x00"
"""Locally administered; what most virtual machines use."""


class VirtioDevices:
    """The random source, the console, then network cards and disks as the definition lists them.

    Args:
        config: The machine.
        write: Where ``hvc0`` writes.
        executor: Runs the devices' work.
        clock: Time for those that need it.

    Raises:
        UsageError: Too many devices, or an unknown network backend.
        HostRefused: A disk or a socket cannot be opened, or a disk is in use.
        ImageError: A disk is not one.
    """

    def __init__(
        self, config: MachineConfig, write: Callable[[bytes], None], executor: Executor, clock: Clock
    ) -> None:
        self.console = VirtioConsole(write, executor)
        self.all: list[VirtioDevice] = [VirtioRng(executor, clock), self.console]
        count = len(self.all) + len(config.net) + len(config.disks)
        if count > MAXIMUM_DEVICES:
            raise UsageError(
                f"{len(config.net)} network cards and {len(config.disks)} disks are too many: "
                f"a machine has slots for {MAXIMUM_DEVICES - len(self.all)}"
            )
        with ExitStack() as opened:
            opened.callback(self.close)
            for index, backend in enumerate(config.net):
                self.all.append(_make_net(index, backend, executor))
            for index, disk in enumerate(config.disks):
                self.all.append(_make_disk(index, disk, config.cpus, executor))
            opened.pop_all()

    def close(self) -> None:
        """Close images and sockets. Idempotent."""
        with ExitStack() as closing:
            for device in self.all:
                closing.callback(device.close)


def _make_disk(index: int, disk: DiskConfig, cpus: int, executor: Executor) -> VirtioBlock:
    serial = f"disk{index}" if disk.serial is None else disk.serial
    queues = min(cpus, _BLOCK_QUEUES_MAXIMUM)
    return VirtioBlock(open_disk(disk), executor, serial=serial, queues=queues)


def _make_net(index: int, backend: str, executor: Executor) -> VirtioNet:
    return VirtioNet(_open_sink(backend), executor, mac=_mac(index))


def _open_sink(backend: str) -> PacketSink:
    kind, _, rest = backend.partition(":")
    if kind == "none" and not rest:
        return NullSink()
    if kind == "unix" and rest:
        return UnixSocketSink(Path(rest))
    raise UsageError(f"there is no network backend {backend!r}", remedy="Give unix:PATH or none.")


def _mac(index: int) -> bytes:
    """An address that stays over resets and differs between the machines of this host."""
    identity = f"{os.uname().nodename}/{os.getpid()}/{index}".encode()
    return _QEMU_OUI + hashlib.blake2s(identity, digest_size=3).digest()
