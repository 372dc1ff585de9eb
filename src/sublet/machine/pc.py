"""The machine pc: i440FX and PIIX3, which every system of the last thirty years knows."""

from __future__ import annotations

from sublet.devices.pci import PciDevice
from sublet.devices.platform import i440fx
from sublet.devices.platform.pirq import PirqRouter
from sublet.devices.storage import PiixIde, ide
from sublet.devices.storage.ide_channel import COMMAND_PORTS, CONTROL_PORTS
from sublet.machine.ata_drives import ata_drives
from sublet.machine.firmware_board import FirmwareBoard
from sublet.machine.host import DataPort, GsiLine


class Pc(FirmwareBoard):
    """Slots: 0 host bridge; 1 PIIX3 (0 ISA bridge, 1 IDE, 3 power management); 2 video; 3 to 31 cards."""

    video_slot = 2
    pam_offset = i440fx.PAM
    pm_block_size = i440fx.PM_BLOCK_SIZE
    gpe0_offset = 0x0C
    gpe0_register_size = 2

    def make_router(self, isa_lines: dict[int, GsiLine]) -> PirqRouter:
        """Four PIRQs, which only reach ISA interrupts."""
        return PirqRouter(i440fx.pirq_of, isa_lines, i440fx.PIRQ_COUNT)

    def make_bridge(self) -> PciDevice:
        """82441FX."""
        return i440fx.HostBridge(self.shadow_ram.apply, self.smram_changed())

    def plug_chipset(self) -> None:
        """PIIX3 in slot 1."""
        self._isa_bridge = i440fx.IsaBridge(self.router)
        self.pci.plug(1, self._isa_bridge)
        self.pci.plug(1, self._make_ide(), function=1)
        self._power_management = i440fx.PowerManagement(self.move_pm_block, has_smi=self.has_smi)
        self.pci.plug(1, self._power_management, function=3)

    def sleep_registers(self) -> list[tuple[PciDevice, int, int]]:
        """Where PIRQs are routed to, which the system takes for hard-wired."""
        return [(self._isa_bridge, i440fx.PIRQ_ROUTES, i440fx.PIRQ_COUNT)]

    def takes_smi_command(self) -> bool:
        """As DEVACTB says."""
        return self.has_smi and self._power_management.take_command()

    def _make_ide(self) -> PiixIde:
        lines = [GsiLine(self.vm, irq) for irq in ide.IRQS]
        function = PiixIde(
            ata_drives(self.config, "ide", self.drives, self.media),
            lines,
            self.vm.memory,
            self.workers.branch(ide.CHANNELS),
            data_ports=[DataPort(self.vm, port) for port in ide.COMMAND_BASES],
        )
        self.closing.callback(function.close)
        for channel, command, control in zip(
            function.channels, ide.COMMAND_BASES, ide.CONTROL_BASES, strict=True
        ):
            self.buses.ports.add(command, COMMAND_PORTS, channel)
            self.buses.ports.add(control, CONTROL_PORTS, channel.control)
        return function

    def card_slots(self) -> list[int]:
        """From slot 3: slot 2 is for video."""
        return list(range(3, 32))
