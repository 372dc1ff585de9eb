"""The machine q35: a PC with PCI Express's way into configuration space, and ICH9."""

from __future__ import annotations

from collections.abc import Callable

from sublet.devices.pci import PciDevice, PciEcam
from sublet.devices.platform import q35
from sublet.devices.platform.pirq import PirqRouter
from sublet.devices.platform.pm_block import ICH9_SMI_ENABLE_OFFSET, Part
from sublet.devices.platform.root_complex import ROOT_COMPLEX_SIZE, RootComplexRegisters
from sublet.devices.platform.smi import SmiAlwaysSetUp, SmiControl
from sublet.devices.storage import Ich9Ahci
from sublet.hw import MmioDevice
from sublet.machine.acpi.firmware_tables import Range
from sublet.machine.ata_drives import ata_drives
from sublet.machine.bus import BusConflict
from sublet.machine.firmware_board import FirmwareBoard
from sublet.machine.host import GsiLine, MsiPort

_FIRST_PIRQ_GSI = 16


class Q35(FirmwareBoard):
    """Slots: 0 memory controller; 1 video; 2 to 24 cards; 31 ICH9 (0 LPC bridge, 2 AHCI)."""

    video_slot = 1
    pam_offset = q35.PAM
    pm_block_size = q35.PM_BLOCK_SIZE
    gpe0_offset = 0x20
    gpe0_register_size = 8

    def make_router(self, isa_lines: dict[int, GsiLine]) -> PirqRouter:
        """Eight PIRQs; each drives its own I/O APIC input besides the ISA interrupt it is routed to."""
        fixed = [self.apic_lines[_FIRST_PIRQ_GSI + pirq].input() for pirq in range(q35.PIRQ_COUNT)]
        self._root_complex = RootComplexRegisters(lambda: router.rewire())
        self._root_complex_place: Range | None = None
        router = PirqRouter(self._root_complex.pirq_of, isa_lines, q35.PIRQ_COUNT, fixed)
        return router

    def make_bridge(self) -> PciDevice:
        """82G33."""
        self.extended_base: Range | None = None
        self._memory_controller = q35.MemoryController(
            self.shadow_ram.apply, self._move_extended, self.smram_changed()
        )
        return self._memory_controller

    def _move_extended(self, place: tuple[int, int] | None) -> None:
        """Let extended configuration space decode at a base and size."""
        self.extended_base = self._move(self.extended_base, place, PciEcam(self.pci))

    def _move_root_complex(self, base: int | None) -> None:
        """Let the chipset configuration registers decode at a base."""
        place = None if base is None else (base, ROOT_COMPLEX_SIZE)
        self._root_complex_place = self._move(self._root_complex_place, place, self._root_complex)

    def _move(self, before: Range | None, place: Range | None, device: MmioDevice) -> Range | None:
        """Let a device decode a base and size, no longer ``before``; nowhere where something else does."""
        if before is not None:
            self.buses.mmio.remove(*before)
        if place is None or self.memory.overlaps(*place):
            return None
        try:
            self.buses.mmio.add(*place, device)
        except BusConflict:
            return None
        return place

    def plug_chipset(self) -> None:
        """ICH9 in slot 31."""
        self._lpc_bridge = q35.LpcBridge(
            self.router, self.move_pm_block, self._smi, self._root_complex, self._move_root_complex
        )
        self.pci.plug(31, self._lpc_bridge)
        drives = ata_drives(self.config, "ahci", self.drives, self.media)
        ahci = Ich9Ahci(drives, self.vm.memory, MsiPort(self.vm), self.workers.branch(len(drives)))
        self.closing.callback(ahci.close)
        self.pci.plug(31, ahci, function=2)

    def sleep_registers(self) -> list[tuple[PciDevice, int, int]]:
        """Where extended configuration space is, by which SeaBIOS sets all else up, and the PIRQs' routes."""
        routes = [(self._lpc_bridge, register, 1) for register in q35.PIRQ_ROUTES]
        return [(self._memory_controller, q35.PCIEXBAR, 8), *routes]

    def more_pm_parts(self) -> list[Part]:
        """SMI control."""
        self._smi = SmiControl() if self.has_smi else None
        return [Part(ICH9_SMI_ENABLE_OFFSET, 8, self._smi or SmiAlwaysSetUp())]

    def takes_smi_command(self) -> bool:
        """As SMI_EN says."""
        return self._smi is not None and self._smi.take_command()

    def describe_chipset(self) -> None:
        """Let the firmware ask for SMIs to all vCPUs."""
        if self.has_smi:
            self.smi_features.add_files(self.fw_cfg)

    @property
    def ecam(self) -> Range | None:
        """Where the firmware put extended configuration space."""
        return self.extended_base

    def apic_gsi(self) -> Callable[[int, int], int]:
        """PIRQA to H are inputs 16 to 23."""
        return lambda slot, pin: _FIRST_PIRQ_GSI + self._root_complex.pirq_of(slot, pin)

    def card_slots(self) -> list[int]:
        """From slot 2: slot 1 is for video."""
        return list(range(2, 25))
