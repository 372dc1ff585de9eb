"""What every machine's board has: buses, console, virtio devices, a power button."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sublet.control import Operations
from sublet.devices.legacy.serial import COM1_GSI, Serial
from sublet.devices.pci import PciDevice
from sublet.devices.platform import PvPanic
from sublet.devices.virtio import VirtioPci
from sublet.machine import memory_map as mm
from sublet.machine.boot import BootState
from sublet.machine.bus import Buses
from sublet.machine.chassis import Chassis
from sublet.machine.control import Request
from sublet.machine.disks import Drives, check_buses
from sublet.machine.host import GsiLine, MonotonicClock, MsiPort, WorkerPool
from sublet.machine.live_disks import add_disk_operations
from sublet.machine.media import Media
from sublet.machine.networks import Networks
from sublet.machine.virtio import VirtioDevices

if TYPE_CHECKING:
    from sublet.machine.screen import Screen


class Board(ABC):
    """Everything that hangs on the buses. Built powered off; `close` in every case.

    Args:
        chassis: What it is built into.

    Raises:
        SubletError: A disk or a network cannot be opened.
    """

    address_bits = 52
    """Most bits of a physical address that its processors may have."""

    def __init__(self, chassis: Chassis) -> None:
        config, vm, write, end = chassis.config, chassis.vm, chassis.write, chassis.end
        check_buses(config)
        self.config = config
        self.memory = chassis.memory
        self.vm = vm
        self.nonvolatile = chassis.nonvolatile
        self.buses = Buses()
        self.operations = Operations()
        """What the machine does on request of other commands; devices and the machine add theirs."""
        self.clock = MonotonicClock()
        self.workers = WorkerPool(lambda error: end(Request.FAILED, error))
        self.closing = ExitStack()
        """What `close` calls when no worker is at work any more."""
        # Without console=hvc0 a second login would share the terminal: systemd starts one on any hvc0.
        hvc0 = write if "hvc0" in _consoles(config.cmdline) else discard
        self.networks = Networks(config, vm.memory, self.workers, self.clock)
        self.networks.add_operations(self.operations)
        self.screen: Screen | None = None
        """The screen and keyboard of a board that has them."""
        self.drives = Drives()
        """The disks, whatever controller they are on; a board adds those that it opens itself."""
        add_disk_operations(self.operations, self.drives)
        self.media = Media()
        """Drives for CDs and floppy disks, which a board that has them adds."""
        self.media.add_operations(self.operations)
        self.virtio = self._make_virtio(hvc0)
        self._serial = Serial(GsiLine(vm, COM1_GSI), write, self.clock)
        self.buses.ports.add(mm.COM1_PORT, 8, self._serial)
        self.buses.ports.add(mm.PVPANIC_PORT, 1, PvPanic(lambda: end(Request.PANIC, None)))
        reads_hvc0 = _consoles(config.cmdline)[-1:] == ["hvc0"]
        self.receive = self.virtio.console.receive if reads_hvc0 else self._serial.receive
        """Type on the guest's console; returns how many bytes were taken."""

    def _make_virtio(self, hvc0: Callable[[bytes], None]) -> VirtioDevices:
        try:
            return VirtioDevices(
                self.config, self.networks.virtio, hvc0, self.workers, self.clock, self.drives
            )
        except BaseException:
            self.networks.close()
            raise

    def pci_cards(self) -> list[PciDevice]:
        """What is plugged into PCI slots on every board: virtio devices, then other network cards."""
        memory = self.vm.memory
        transitional = self.config.virtio_is_transitional
        virtio = [
            VirtioPci(device, memory, MsiPort(self.vm), transitional=transitional)
            for device in self.virtio.all
        ]
        return [*virtio, *self.networks.pci]

    @abstractmethod
    def boot(self) -> BootState | None:
        """Load what runs first; the boot processor's state there, or None for its reset vector.

        Raises:
            SubletError: A file is missing or damaged.
        """

    @abstractmethod
    def press_power_button(self) -> None:
        """Ask the guest to shut down."""

    def start(self) -> None:
        """Start the devices' own threads."""
        self._serial.start()

    def close(self) -> None:
        """Stop the devices' threads, write out what they hold, close files. Idempotent."""
        self._serial.close()
        if self.workers.close():
            self.closing.close()
            self.virtio.close()
            self.networks.close()


def _consoles(cmdline: str) -> list[str]:
    """Devices that the kernel's messages go to, in order; the last is the guest's /dev/console.

    Reference: Linux 6.1 Documentation/admin-guide/serial-console.rst.
    """
    named = [word.removeprefix("console=") for word in cmdline.split() if word.startswith("console=")]
    return [name.partition(",")[0] for name in named]


def discard(data: bytes) -> None:
    """Where output goes that nobody shows."""
