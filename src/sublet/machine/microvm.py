"""The machine `microvm`: no firmware; the kernel is entered directly (docs/design/boot.md)."""

from __future__ import annotations

from sublet.devices.pci import IntxRouter, PciConfigPorts, PciEcam, PciHost, Window
from sublet.devices.pci.intx import INTX_FIRST_GSI, INTX_GSI_COUNT
from sublet.devices.platform import AcpiPm, Gpe0, ResetRegister
from sublet.engine import Vm
from sublet.errors import UsageError
from sublet.machine import memory_map as mm
from sublet.machine.acpi import build_tables
from sublet.machine.board import Board
from sublet.machine.boot import BootState, load_kernel
from sublet.machine.bus import Buses
from sublet.machine.chassis import Chassis
from sublet.machine.control import Request
from sublet.machine.host import GsiLine
from sublet.machine.mp_table import build_mp_table
from sublet.machine.runloop import EndMachine


class MicroVm(Board):
    """Wired to buses and interrupt lines as docs/design/memory-map.md has it."""

    def __init__(self, chassis: Chassis) -> None:
        super().__init__(chassis)
        vm, end = chassis.vm, chassis.end
        self._power = AcpiPm(GsiLine(vm, mm.SCI_IRQ), lambda: end(Request.POWEROFF, None))
        self._pci = _make_pci_host(self.buses, self.memory.layout, vm)
        self._add_ports(end)
        self.buses.mmio.add(mm.ECAM_BASE, mm.ECAM_SIZE, PciEcam(self._pci))
        for slot, card in enumerate(self.pci_cards(), start=1):
            self._pci.plug(slot, card)
        self._pci.assign_bars()

    def _add_ports(self, end: EndMachine) -> None:
        reset = ResetRegister(lambda: end(Request.RESET, None))
        ports = self.buses.ports
        ports.add(mm.PM1_EVENT_PORT, 6, self._power)
        ports.add(mm.GPE0_PORT, mm.GPE0_LENGTH, Gpe0())
        ports.add(mm.PCI_CONFIG_PORT, 8, PciConfigPorts(self._pci, reset))

    def boot(self) -> BootState:
        """Do what firmware and boot loader would: tables, kernel, initrd."""
        config, layout = self.config, self.memory.layout
        if config.kernel is None:
            raise UsageError("the machine microvm needs a kernel", remedy="Give --kernel or --machine pc.")
        self.vm.memory.write(mm.ACPI_BASE, build_tables(config.cpus, layout.pci_high_window))
        self.vm.memory.write(mm.MP_TABLE_BASE, build_mp_table(config.cpus, mm.MP_TABLE_BASE))
        return load_kernel(
            config.kernel,
            config.initrd,
            config.cmdline,
            self.vm.memory,
            layout,
            mm.ACPI_BASE,
            config.modules,
        )

    def press_power_button(self) -> None:
        """Ask the guest to shut down."""
        self._power.press_power_button()


def _make_pci_host(buses: Buses, layout: mm.MemoryMap, vm: Vm) -> PciHost:
    lines = [GsiLine(vm, INTX_FIRST_GSI + i) for i in range(INTX_GSI_COUNT)]
    return PciHost(
        buses,
        IntxRouter(lines),
        memory32=_window(mm.PCI_LOW_WINDOW),
        memory64=_window(layout.pci_high_window),
        io=_window(mm.PCI_IO_WINDOW),
    )


def _window(bounds: tuple[int, int]) -> Window:
    return Window(bounds[0], bounds[1] - bounds[0])
