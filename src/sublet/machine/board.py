"""The devices of one machine, wired to its buses and interrupt lines as docs/design/memory-map.md has it."""

from __future__ import annotations

from collections.abc import Callable

from sublet.control import Operations
from sublet.devices.legacy.serial import COM1_GSI, Serial
from sublet.devices.pci import PciConfigPorts, PciEcam, PciHost, Window
from sublet.devices.pci.intx import INTX_FIRST_GSI, INTX_GSI_COUNT
from sublet.devices.platform import AcpiPm, Gpe0, PvPanic, ResetRegister
from sublet.devices.virtio import VirtioPci
from sublet.engine import Vm
from sublet.machine import memory_map as mm
from sublet.machine.bus import Buses
from sublet.machine.config import MachineConfig
from sublet.machine.control import Request
from sublet.machine.host import GsiLine, MonotonicClock, MsiPort, WorkerPool
from sublet.machine.runloop import EndMachine
from sublet.machine.virtio import VirtioDevices


class Board:
    """Everything that hangs on the buses. Built powered off; `close` in every case.

    Args:
        config: The machine.
        layout: Its address map.
        vm: Interrupt lines and memory.
        write: Where the console's output goes.
        end: What power-off, reset, panic and failure call.

    Raises:
        SubletError: A disk or a network cannot be opened.
    """

    def __init__(
        self,
        config: MachineConfig,
        layout: mm.MemoryMap,
        vm: Vm,
        write: Callable[[bytes], None],
        end: EndMachine,
    ) -> None:
        self.buses = Buses()
        self.operations = Operations()
        """What the machine does on request of other commands; devices and the machine add theirs."""
        clock = MonotonicClock()
        self._workers = WorkerPool(lambda error: end(Request.FAILED, error))
        # Without console=hvc0 a second login would share the terminal: systemd starts one on any hvc0.
        hvc0 = write if "hvc0" in _consoles(config.cmdline) else _discard
        self._virtio = VirtioDevices(config, hvc0, self._workers, clock)
        self._serial = Serial(GsiLine(vm, COM1_GSI), write, clock)
        self._power = AcpiPm(GsiLine(vm, mm.SCI_IRQ), lambda: end(Request.POWEROFF, None))
        self._pci = _make_pci_host(self.buses, layout, vm)
        self._add_ports(end)
        self.buses.mmio.add(mm.ECAM_BASE, mm.ECAM_SIZE, PciEcam(self._pci))
        for slot, device in enumerate(self._virtio.all, start=1):
            self._pci.plug(slot, VirtioPci(device, vm.memory, MsiPort(vm)))
        self._pci.assign_bars()
        reads_hvc0 = _consoles(config.cmdline)[-1:] == ["hvc0"]
        self.receive = self._virtio.console.receive if reads_hvc0 else self._serial.receive
        """Type on the guest's console; returns how many bytes were taken."""

    def _add_ports(self, end: EndMachine) -> None:
        reset = ResetRegister(lambda: end(Request.RESET, None))
        ports = self.buses.ports
        ports.add(mm.COM1_PORT, 8, self._serial)
        ports.add(mm.PVPANIC_PORT, 1, PvPanic(lambda: end(Request.PANIC, None)))
        ports.add(mm.PM1_EVENT_PORT, 6, self._power)
        ports.add(mm.GPE0_PORT, mm.GPE0_LENGTH, Gpe0())
        ports.add(mm.PCI_CONFIG_PORT, 8, PciConfigPorts(self._pci, reset))

    def start(self) -> None:
        """Start the devices' own threads."""
        self._serial.start()

    def press_power_button(self) -> None:
        """Ask the guest to shut down."""
        self._power.press_power_button()

    def close(self) -> None:
        """Stop the devices' threads, write out what they hold, close files. Idempotent."""
        self._serial.close()
        if self._workers.close():
            self._virtio.close()


def _consoles(cmdline: str) -> list[str]:
    """Devices that the kernel's messages go to, in order; the last is the guest's /dev/console.

    Reference: Linux 6.1 Documentation/admin-guide/serial-console.rst.
    """
    named = [word.removeprefix("console=") for word in cmdline.split() if word.startswith("console=")]
    return [name.partition(",")[0] for name in named]


def _discard(data: bytes) -> None:
    """Where output goes that nobody shows."""


def _make_pci_host(buses: Buses, layout: mm.MemoryMap, vm: Vm) -> PciHost:
    lines = [GsiLine(vm, INTX_FIRST_GSI + i) for i in range(INTX_GSI_COUNT)]
    return PciHost(
        buses,
        lines,
        memory32=_window(mm.PCI_LOW_WINDOW),
        memory64=_window(layout.pci_high_window),
        io=_window(mm.PCI_IO_WINDOW),
    )


def _window(bounds: tuple[int, int]) -> Window:
    return Window(bounds[0], bounds[1] - bounds[0])
