"""What the boards with firmware share: ROM, shadow RAM, fw_cfg, the ISA devices, the ACPI registers."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable
from typing import Final

from sublet.devices.legacy.i8042 import COMMAND_PORT, DATA_PORT, I8042, KEYBOARD_GSI, MOUSE_GSI
from sublet.devices.legacy.serial import Serial
from sublet.devices.pci import PciConfigPorts, PciDevice, PciHost, Window
from sublet.devices.platform import AcpiPm, Gpe0, ResetRegister
from sublet.devices.platform.debug_console import DEBUG_PORT, DebugConsole
from sublet.devices.platform.flash import Flash
from sublet.devices.platform.fw_cfg import FW_CFG_PORT, FW_CFG_PORT_COUNT, FwCfg
from sublet.devices.platform.hpet import HPET_BASE, HPET_SIZE, Hpet, LegacyLines
from sublet.devices.platform.pam import read_pam, restore_pam, save_pam
from sublet.devices.platform.pirq import ROUTABLE_IRQS, PirqRouter
from sublet.devices.platform.pm_block import PM_TIMER_OFFSET, Part, PmBlock, PmTimer
from sublet.devices.platform.port92 import PORT92, Port92
from sublet.devices.platform.smi import APM_PORT, APM_PORT_COUNT, ApmPorts
from sublet.devices.platform.smi_features import SmiFeatures
from sublet.devices.platform.smram import Smram
from sublet.devices.storage import fdc
from sublet.errors import HostRefused
from sublet.machine import memory_map as mm
from sublet.machine.acpi import dsdt
from sublet.machine.acpi.firmware_tables import Range
from sublet.machine.acpi.tables import PowerPorts
from sublet.machine.board import Board, discard
from sublet.machine.boot import BootState
from sublet.machine.boot_order import boot_paths
from sublet.machine.boot_roms import add_boot_roms
from sublet.machine.bus import BusConflict
from sublet.machine.chassis import Chassis
from sublet.machine.control import Request
from sublet.machine.firmware import Firmware, load_firmware
from sublet.machine.firmware_acpi import add_acpi_files
from sublet.machine.firmware_config import cmos_bytes, describe_machine
from sublet.machine.firmware_kernel import offer_kernel
from sublet.machine.firmware_log import FirmwareLog
from sublet.machine.floppies import Floppies
from sublet.machine.host import GsiLine, SharedLine
from sublet.machine.memory import DeviceMemory
from sublet.machine.runloop import in_system_management_mode
from sublet.machine.screen import Screen
from sublet.machine.shadow_ram import ShadowRam
from sublet.machine.system_management import SmiSource, SystemManagementRam
from sublet.machine.video import plug_video

COM2_PORT: Final = 0x2F8
COM2_IRQ: Final = 3
_APIC_INPUTS: Final = range(16, 24)
"""I/O APIC inputs that no ISA interrupt drives."""
_HPET_INPUTS: Final = range(20, 24)
"""What its timers can be routed to (Intel ICH9 316972 §20.1.5 "TIMn_CONF")."""
_FOUR_GIB: Final = 1 << 32
_PCI_MEMORY_END: Final = mm.IOAPIC_BASE
_PCI_HIGH_END: Final = 1 << 40
"""What 40 bits of address reach."""


class FirmwareBoard(Board):
    """A board that starts at the reset vector of its firmware.

    Subclasses give the chipset: `make_router`, `make_bridge`, `plug_chipset`.
    """

    address_bits = 40
    video_slot: int
    """PCI slot of the display adapter."""
    pm_block_size: int
    """Ports of the ACPI register block."""
    pam_offset: int
    """Where the host bridge has its attribute map."""
    gpe0_offset: int
    """Where GPE0 lies in it."""
    gpe0_register_size: int
    """Bytes of each of GPE0's two registers."""

    def __init__(self, chassis: Chassis) -> None:
        firmware = load_firmware(chassis.config)
        if chassis.config.firmware == "uefi-secure" and not chassis.vm.has_smm():
            raise HostRefused(
                "Secure Boot needs system-management mode, which the engine kvm does not offer here",
                remedy="Give --engine translate.",
            )
        super().__init__(chassis)
        self.end = chassis.end
        self._woken = False
        self._variables: DeviceMemory | None = None
        self._bridge: PciDevice | None = None
        try:
            self._wire(firmware)
        except BaseException:
            self.close()
            raise

    def _wire(self, firmware: Firmware) -> None:
        config, memory, vm, end = self.config, self.memory, self.vm, self.end
        self._rom = DeviceMemory(memory, len(firmware.code))
        self._rom.buffer[:] = firmware.code
        rom_base = _FOUR_GIB - len(firmware.code)
        self._rom.window(readonly=True).place(rom_base, len(firmware.code))
        self._variables = self._add_flash(firmware, rom_base)
        memory.open_legacy_hole()
        self.shadow_ram = ShadowRam(memory, self._rom)
        self.smi_features = SmiFeatures()
        self.power = AcpiPm(
            GsiLine(vm, mm.SCI_IRQ),
            lambda: end(Request.POWEROFF, None),
            lambda: end(Request.SUSPEND, None),
        )
        # Quirk: SeaBIOS, waking, protects memory by variables that it has given back after its POST, its own
        # stack among it at times: what the POST has left is what the next start finds.
        self._woken = self.nonvolatile.wake_reason is not None
        if self.nonvolatile.wake_reason is not None:
            self.power.wake(self.nonvolatile.wake_reason)
        self._pm_base: int | None = None
        self._pm_block = PmBlock(self._pm_parts())
        isa_lines = {irq: GsiLine(vm, irq) for irq in ROUTABLE_IRQS}
        self.apic_lines = {gsi: SharedLine(GsiLine(vm, gsi)) for gsi in _APIC_INPUTS}
        self.router = self.make_router(isa_lines)
        self._bridge = self.make_bridge()
        if self.nonvolatile.shadow is not None:
            restore_pam(self._bridge.config, self.pam_offset, self.nonvolatile.shadow)
            self.shadow_ram.apply(read_pam(self._bridge.config, self.pam_offset))
        self.pci = self._make_pci_host(self._bridge)
        self.plug_chipset()
        self._restore_after_sleep()
        self._add_apm_ports()
        self.vga = plug_video(self, self.video_slot)
        cards = self._plug_cards()
        self.fw_cfg = FwCfg(vm.memory)
        describe_machine(self.fw_cfg, config, memory.layout, boot_paths(self, cards))
        offer_kernel(self.fw_cfg, config, memory.layout)
        add_acpi_files(self)
        self.describe_chipset()
        vm.write_cmos([*self.nonvolatile.cmos(), *cmos_bytes(config)])
        self._add_isa_devices()
        self.hpet = self._make_hpet()

    def _restore_after_sleep(self) -> None:
        """Quirk: SeaBIOS wakes a system without having set these up, and systems expect that it has."""
        if self.nonvolatile.wake_reason is None:
            return
        for (device, offset, size), value in zip(
            self.sleep_registers(), self.nonvolatile.chipset, strict=False
        ):
            device.config_write(offset, size, value)

    @property
    def has_smi(self) -> bool:
        """Whether the engine's vCPUs take SMIs."""
        return self.vm.has_smm()

    def _add_apm_ports(self) -> None:
        source = SmiSource(self.vm, self.config.cpus, self.smi_features, self.takes_smi_command)
        self.buses.ports.add(APM_PORT, APM_PORT_COUNT, ApmPorts(source.command))

    def smram_changed(self) -> Callable[[Smram], None]:
        """What the host bridge tells of SMRAM; nobody without system-management mode."""
        return SystemManagementRam(self.memory, self.vm).apply if self.has_smi else lambda wanted: None

    def _make_hpet(self) -> Hpet:
        inputs = {gsi: self.apic_lines[gsi].input() for gsi in _HPET_INPUTS}
        legacy = LegacyLines(GsiLine(self.vm, mm.TIMER_IRQ), GsiLine(self.vm, mm.RTC_IRQ))
        hpet = Hpet(self.clock, inputs, legacy, self.vm.connect_legacy_timers)
        self.buses.mmio.add(HPET_BASE, HPET_SIZE, hpet)
        self.closing.callback(hpet.close)
        return hpet

    def _add_flash(self, firmware: Firmware, end: int) -> DeviceMemory | None:
        """The chip with UEFI's variables, just below the code."""
        if firmware.variables is None:
            return None
        size = len(firmware.variables)
        ram = DeviceMemory(self.memory, size)
        ram.buffer[:] = self.nonvolatile.variables(firmware.variables)
        # What Secure Boot trusts is the firmware's alone to change.
        guard = in_system_management_mode if self.config.firmware == "uefi-secure" else None
        flash = Flash(ram, end - size, lambda: self.workers.submit(self._keep_variables), guard)
        self.buses.mmio.add(end - size, size, flash)
        return ram

    def _keep_variables(self) -> None:
        if self._variables is not None:
            self.nonvolatile.keep_variables(bytes(self._variables.buffer))

    @abstractmethod
    def make_router(self, isa_lines: dict[int, GsiLine]) -> PirqRouter:
        """How PCI interrupts reach the interrupt controllers."""

    @abstractmethod
    def make_bridge(self) -> PciDevice:
        """The device in slot 0."""

    @abstractmethod
    def plug_chipset(self) -> None:
        """Put the chipset's other functions on the bus."""

    @abstractmethod
    def sleep_registers(self) -> list[tuple[PciDevice, int, int]]:
        """Configuration registers of the chipset that keep their values in S3: function, offset, size."""

    @abstractmethod
    def takes_smi_command(self) -> bool:
        """Whether a command at the APM port is to raise an SMI."""

    @abstractmethod
    def card_slots(self) -> list[int]:
        """Slots for cards, in the order in which they are given out."""

    def _pm_parts(self) -> list[Part]:
        return [
            Part(0, 6, self.power),
            Part(PM_TIMER_OFFSET, 4, PmTimer(self.clock)),
            Part(self.gpe0_offset, 2 * self.gpe0_register_size, Gpe0(self.gpe0_register_size)),
            *self.more_pm_parts(),
        ]

    def describe_chipset(self) -> None:
        """Tell the firmware what is this chipset's alone."""

    def more_pm_parts(self) -> list[Part]:
        """What else the chipset has among its ACPI registers."""
        return []

    @property
    def pm_base(self) -> int | None:
        """Port of the ACPI registers, as the firmware placed them."""
        return self._pm_base

    def move_pm_block(self, base: int | None) -> None:
        """Let the ACPI registers decode at ``base``; nowhere where something else does."""
        if self._pm_base is not None:
            self.buses.ports.remove(self._pm_base, self.pm_block_size, self._pm_block)
        self._pm_base = base
        if base is None:
            return
        try:
            self.buses.ports.add(base, self.pm_block_size, self._pm_block)
        except BusConflict:
            self._pm_base = None

    @property
    def power_ports(self) -> PowerPorts:
        """Where the ACPI registers are; before the firmware has placed them, where it usually does."""
        base = mm.PM1_EVENT_PORT if self._pm_base is None else self._pm_base
        return PowerPorts.of_block(base, self.gpe0_offset, 2 * self.gpe0_register_size)

    @property
    def ecam(self) -> Range | None:
        """Base and size of extended configuration space, if the chipset has it."""
        return None

    def apic_gsi(self) -> Callable[[int, int], int] | None:
        """Which I/O APIC input a slot's pin drives besides its ISA interrupt, if any."""
        return None

    def isa_gsi(self, slot: int, pin: int) -> int | None:
        """Which ISA interrupt a slot's pin is routed to now."""
        return self.router.isa_irq(self.router.pirq_of(slot, pin))

    def isa_devices(self) -> bytes:
        """AML of the devices that nobody can discover."""
        serial = dsdt.serial_port(1, mm.COM1_PORT, mm.COM1_IRQ) + dsdt.serial_port(2, COM2_PORT, COM2_IRQ)
        return serial + dsdt.keyboard_and_mouse() + dsdt.high_precision_timer(HPET_BASE)

    def _make_pci_host(self, bridge: PciDevice) -> PciHost:
        layout = self.memory.layout
        low, high = layout.low_ram_end, max(layout.ram[-1].end, mm.HIGH_RAM_BASE)
        return PciHost(
            self.buses,
            self.router,
            memory32=Window(low, _PCI_MEMORY_END - low),
            memory64=Window(high, _PCI_HIGH_END - high),
            io=Window(*mm.PCI_IO_WINDOW),
            bridge=bridge,
        )

    def _plug_cards(self) -> list[tuple[int, PciDevice]]:
        """Put the cards into slots; returns which is where."""
        cards = self.pci_cards()
        add_boot_roms(self, cards)
        plugged = list(zip(self.card_slots(), cards, strict=False))
        for slot, card in plugged:
            self.pci.plug(slot, card)
        return plugged

    def _add_isa_devices(self) -> None:
        reset = ResetRegister(self.reset_machine)
        ports = self.buses.ports
        keys = I8042(
            GsiLine(self.vm, KEYBOARD_GSI), GsiLine(self.vm, MOUSE_GSI), self.set_a20, self.reset_machine
        )
        ports.add(DATA_PORT, 1, keys)
        ports.add(COMMAND_PORT, 1, keys.command_port)
        self.screen = Screen(self.vga, keys, self.vm.memory)
        self.screen.add_operations(self.operations)
        self.closing.callback(self.screen.close)
        floppies = Floppies(
            self.config, ports, GsiLine(self.vm, fdc.IRQ), self.vm.memory, self.workers, self.media
        )
        self.closing.callback(floppies.close)
        self.vm.write_cmos(floppies.cmos_bytes())
        ports.add(COM2_PORT, 8, Serial(GsiLine(self.vm, COM2_IRQ), discard, self.clock))
        ports.add(PORT92, 1, Port92(self.reset_machine, self.set_a20))
        ports.add(DEBUG_PORT, 1, DebugConsole(FirmwareLog().write))
        ports.add(FW_CFG_PORT, FW_CFG_PORT_COUNT, self.fw_cfg)
        ports.add(mm.PCI_CONFIG_PORT, 8, PciConfigPorts(self.pci, reset))

    def reset_machine(self) -> None:
        """What every way of resetting ends in."""
        self.end(Request.RESET, None)

    def set_a20(self, enabled: bool) -> None:
        """Open or close the A20 gate. Deviation: under KVM, which has none, it stays open."""
        with contextlib.suppress(HostRefused):
            self.vm.set_a20(enabled)

    def start(self) -> None:
        """See `Board.start`."""
        super().start()
        self.hpet.start()

    def boot(self) -> BootState | None:
        """Start at the reset vector."""
        return None

    def close(self) -> None:
        """See `Board.close`; keeps what survives a reset."""
        super().close()
        self.nonvolatile.keep_cmos(self.vm.read_cmos())
        if self._bridge is not None:
            self.nonvolatile.ram = self.memory.ram
            if not self._woken:
                self.nonvolatile.shadow = save_pam(self._bridge.config, self.pam_offset)
            self.nonvolatile.keep_chipset(
                [device.config.get(offset, size) for device, offset, size in self.sleep_registers()]
            )
        self._keep_variables()

    def press_power_button(self) -> None:
        """Ask the guest to shut down."""
        self.power.press_power_button()
