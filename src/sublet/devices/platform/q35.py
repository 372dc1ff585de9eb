"""The chipset of the machine q35: 82G33 memory controller hub and ICH9 LPC bridge.

Reference: Intel 3 Series Express Chipset (316966); Intel ICH9 (316972) chapter 13 "LPC Interface Bridge
Registers". The subsystem identifiers are what SeaBIOS and OVMF know virtual machines by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sublet.devices.pci.device import PciDevice
from sublet.devices.platform.i440fx import INTEL, SUBSYSTEM, SUBSYSTEM_VENDOR
from sublet.devices.platform.pam import PAM_COUNT, define_pam, read_pam
from sublet.devices.platform.pirq import ROUTE_DISABLED, ROUTE_WRITABLE, PirqRouter
from sublet.devices.platform.root_complex import ROOT_COMPLEX_SIZE, RootComplexRegisters
from sublet.devices.platform.smi import SmiControl
from sublet.devices.platform.smram import Smram, SmramRegisters

PCIEXBAR: Final = 0x60
PAM: Final = 0x90
TSEG_MEBIBYTES: Final = 0x50
SMRAM: Final = 0x9D
EXTENDED_SMRAM: Final = 0x9E
MEMORY_REGISTERS: Final = ((0x52, 2, 0x0030, 0x00F2), (0xA4, 4, 0, 0xFFF0_0000), (0xA8, 4, 0, 0xFFF0_0000))
"""GGC, GBSM and BGSM: memory of graphics that the board does not have; firmware notes what it takes."""
TSEG_BASE: Final = 0xAC
LOW_MEMORY_TOP: Final = 0xB0
PIRQ_COUNT: Final = 8
PIRQ_ROUTES: Final = (0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6A, 0x6B)
PM_BASE: Final = 0x40
ACPI_CONTROL: Final = 0x44
ACPI_ENABLE: Final = 0x80
PM_BLOCK_SIZE: Final = 128
GENERAL_PM_CONFIGURATION: Final = 0xA0
SMI_LOCK: Final = 1 << 4
ROOT_COMPLEX_BASE: Final = 0xF0

_EXTENDED_BASE_SIZES: Final = {0: 256 << 20, 1: 128 << 20, 2: 64 << 20}


class MemoryController(PciDevice):
    """82G33 device 0: memory attributes, and where extended configuration space lies.

    Args:
        on_pam: Given the attributes of `PAM_SEGMENTS` when they change.
        on_extended_base: Given base and size of extended configuration space, or None, when it changes.
        on_smram: Given what the registers of SMRAM say when that changes.
    """

    def __init__(
        self,
        on_pam: Callable[[tuple[int, ...]], None],
        on_extended_base: Callable[[tuple[int, int] | None], None],
        on_smram: Callable[[Smram], None],
    ) -> None:
        super().__init__(
            vendor_id=INTEL,
            device_id=0x29C0,
            class_code=0x060000,
            subsystem_vendor_id=SUBSYSTEM_VENDOR,
            subsystem_id=SUBSYSTEM,
        )
        self._on_pam = on_pam
        self._on_extended_base = on_extended_base
        self._extended: tuple[int, int] | None = None
        self.config.define(PCIEXBAR, 8, 0xE000_0000, 0xF_FC00_0007)
        define_pam(self.config, PAM)
        for offset, size, value, writable in MEMORY_REGISTERS:
            self.config.define(offset, size, value, writable)
        # Kept for the firmware, which asks where TSEG is; it always ends where low RAM does.
        self.config.define(TSEG_BASE, 4, 0, 0xFFF0_0000)
        self.config.define(LOW_MEMORY_TOP, 2, 0x0010, 0xFFF0)
        self._smram = SmramRegisters(self.config, on_smram, SMRAM, (EXTENDED_SMRAM, TSEG_MEBIBYTES))

    @property
    def pam(self) -> tuple[int, ...]:
        """Two bits a segment."""
        return read_pam(self.config, PAM)

    @property
    def extended_base(self) -> tuple[int, int] | None:
        """Base and size of extended configuration space, None while it does not decode."""
        value = self.config.get(PCIEXBAR, 8)
        size = _EXTENDED_BASE_SIZES.get(value >> 1 & 3)
        if not value & 1 or size is None:
            return None
        return value & 0xF_FC00_0000 & ~(size - 1), size

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Follow the attribute and base registers."""
        super().config_write(offset, size, value)
        if offset < PAM + PAM_COUNT and offset + size > PAM:
            self._on_pam(self.pam)
        self._smram.update()
        self._update()

    def _update(self) -> None:
        if self.extended_base != self._extended:
            self._extended = self.extended_base
            self._on_extended_base(self._extended)

    def reset(self) -> None:
        """Power-on state: ROM below 1 MiB, no extended configuration space, no SMRAM."""
        super().reset()
        self.config.set(PAM, PAM_COUNT, 0)
        self._smram.reset()
        self.config.set(PCIEXBAR, 8, 0xE000_0000)
        self._on_pam(self.pam)
        self._update()

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``; shows what the registers say."""
        self._smram.unlock()
        super().load_state(state)
        self._smram.update()
        self._on_pam(self.pam)
        self._update()


class LpcBridge(PciDevice):
    """ICH9 device 31 function 0: PIRQ routes, the ACPI registers' base, the root complex's base.

    Args:
        router: Eight PIRQs.
        on_base: Given the I/O base of the ACPI registers, or None, when it changes.
        smi: SMI_EN, which a bit here locks; None: the machine's processors take no SMIs.
        root_complex: The registers behind RCBA, which are reset and saved with the bridge.
        on_root_complex: Given their base, or None, when it changes.
    """

    def __init__(
        self,
        router: PirqRouter,
        on_base: Callable[[int | None], None],
        smi: SmiControl | None,
        root_complex: RootComplexRegisters,
        on_root_complex: Callable[[int | None], None],
    ) -> None:
        super().__init__(
            vendor_id=INTEL,
            device_id=0x2918,
            class_code=0x060100,
            revision=2,
            subsystem_vendor_id=SUBSYSTEM_VENDOR,
            subsystem_id=SUBSYSTEM,
        )
        self._router = router
        self._on_base = on_base
        self._smi = smi
        self._base: int | None = None
        self._root_complex = root_complex
        self._on_root_complex = on_root_complex
        self._root_complex_base: int | None = None
        self.config.define(PM_BASE, 4, 1, 0xFF80)
        self.config.define(ACPI_CONTROL, 1, 0, 0x87)
        for register in PIRQ_ROUTES:
            self.config.define(register, 1, ROUTE_DISABLED, ROUTE_WRITABLE)
        self.config.define(0x80, 4, 0, 0xFFFF_FFFF)  # decode ranges of ports that are always decoded here
        self.config.define(GENERAL_PM_CONFIGURATION, 2, 0, 0x1FFF)
        self.config.define(0xA4, 1, 0, 0x08)
        self.config.define(ROOT_COMPLEX_BASE, 4, 0, 0xFFFF_C001)

    @property
    def base(self) -> int | None:
        """I/O base of the 128 ports of the ACPI registers, None while they do not decode."""
        base = self.config.get(PM_BASE, 4) & 0xFF80
        return base if self.config.get(ACPI_CONTROL, 1) & ACPI_ENABLE and base else None

    @property
    def root_complex_base(self) -> int | None:
        """Where the chipset configuration registers decode, if anywhere."""
        value = self.config.get(ROOT_COMPLEX_BASE, 4)
        return value & ~(ROOT_COMPLEX_SIZE - 1) if value & 1 else None

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Follow the routes and the bases."""
        super().config_write(offset, size, value)
        if offset < PIRQ_ROUTES[-1] + 1 and offset + size > PIRQ_ROUTES[0]:
            self._route()
        self._lock_smi()
        self._update()

    def _lock_smi(self) -> None:
        value = self.config.get(GENERAL_PM_CONFIGURATION, 2)
        if value & SMI_LOCK:
            self.config.define(GENERAL_PM_CONFIGURATION, 2, value, 0x1FFF & ~SMI_LOCK)
            if self._smi is not None:
                self._smi.lock()

    def _route(self) -> None:
        self._router.route([self.config.get(register, 1) for register in PIRQ_ROUTES])

    def _update(self) -> None:
        if self.base != self._base:
            self._base = self.base
            self._on_base(self._base)
        if self.root_complex_base != self._root_complex_base:
            self._root_complex_base = self.root_complex_base
            self._on_root_complex(self._root_complex_base)

    def reset(self) -> None:
        """Power-on state: nothing routed, no ACPI registers, no root complex."""
        super().reset()
        self._root_complex.reset()
        self.config.set(ROOT_COMPLEX_BASE, 4, 0)
        for register in PIRQ_ROUTES:
            self.config.set(register, 1, ROUTE_DISABLED)
        self.config.set(PM_BASE, 4, 1)
        self.config.set(ACPI_CONTROL, 1, 0)
        self.config.define(GENERAL_PM_CONFIGURATION, 2, 0, 0x1FFF)
        self._route()
        self._update()

    def save_state(self) -> dict[str, Any]:
        """Configuration space, and the registers behind it."""
        return {**super().save_state(), "root_complex": self._root_complex.save_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``; routes anew and moves the registers."""
        self.config.define(GENERAL_PM_CONFIGURATION, 2, 0, 0x1FFF)
        super().load_state(state)
        self._root_complex.load_state(state["root_complex"])
        self._route()
        self._lock_smi()
        self._update()
