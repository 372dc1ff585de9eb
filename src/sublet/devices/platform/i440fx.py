"""The chipset of the machine pc: 82441FX host bridge, PIIX3 ISA bridge, PIIX4 power management function.

Reference: Intel 82441FX (290549); 82371SB PIIX3 (290550); 82371AB PIIX4 (290562). Like QEMU's machine of this
name it pairs the PIIX3 with the power management function of its successor, which operating systems need
for ACPI; the subsystem identifiers are what SeaBIOS and OVMF know virtual machines by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sublet.devices.pci.device import PciDevice
from sublet.devices.platform.pam import PAM_COUNT, define_pam, read_pam
from sublet.devices.platform.pirq import ROUTE_DISABLED, ROUTE_WRITABLE, PirqRouter
from sublet.devices.platform.smram import Smram, SmramRegisters

INTEL: Final = 0x8086
SUBSYSTEM_VENDOR: Final = 0x1AF4
SUBSYSTEM: Final = 0x1100

PAM: Final = 0x59
SMRAM: Final = 0x72
PIRQ_ROUTES: Final = 0x60
PIRQ_COUNT: Final = 4
PM_BASE: Final = 0x40
PM_MISC: Final = 0x80
PM_IO_ENABLE: Final = 1
PM_BLOCK_SIZE: Final = 64
DEVICE_ACTIVITY_B: Final = 0x58
APMC_ENABLE: Final = 1 << 25


def pirq_of(slot: int, pin: int) -> int:
    """The board's wiring: each slot's INTA is the PIRQ after its neighbour's; slot 1's is PIRQA."""
    return (slot + pin - 1) % PIRQ_COUNT


class HostBridge(PciDevice):
    """82441FX: memory attributes below 1 MiB.

    Args:
        on_pam: Given the attributes of `PAM_SEGMENTS` when they change.
        on_smram: Given what the SMRAM register says when that changes.
    """

    def __init__(self, on_pam: Callable[[tuple[int, ...]], None], on_smram: Callable[[Smram], None]) -> None:
        super().__init__(
            vendor_id=INTEL,
            device_id=0x1237,
            class_code=0x060000,
            revision=2,
            subsystem_vendor_id=SUBSYSTEM_VENDOR,
            subsystem_id=SUBSYSTEM,
        )
        self._on_pam = on_pam
        define_pam(self.config, PAM)
        self._smram = SmramRegisters(self.config, on_smram, SMRAM)

    @property
    def pam(self) -> tuple[int, ...]:
        """Two bits a segment."""
        return read_pam(self.config, PAM)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Follow the attribute registers."""
        super().config_write(offset, size, value)
        if offset < PAM + PAM_COUNT and offset + size > PAM:
            self._on_pam(self.pam)
        self._smram.update()

    def reset(self) -> None:
        """Power-on state: ROM below 1 MiB, no SMRAM."""
        super().reset()
        self.config.set(PAM, PAM_COUNT, 0)
        self._smram.reset()
        self._on_pam(self.pam)

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``; shows what the attributes say."""
        self._smram.unlock()
        super().load_state(state)
        self._smram.update()
        self._on_pam(self.pam)


class IsaBridge(PciDevice):
    """82371SB function 0: the PIRQ routes."""

    def __init__(self, router: PirqRouter) -> None:
        super().__init__(
            vendor_id=INTEL,
            device_id=0x7000,
            class_code=0x060100,
            subsystem_vendor_id=SUBSYSTEM_VENDOR,
            subsystem_id=SUBSYSTEM,
        )
        self._router = router
        for index in range(PIRQ_COUNT):
            self.config.define(PIRQ_ROUTES + index, 1, ROUTE_DISABLED, ROUTE_WRITABLE)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Follow the route registers."""
        super().config_write(offset, size, value)
        if offset < PIRQ_ROUTES + PIRQ_COUNT and offset + size > PIRQ_ROUTES:
            self._route()

    def _route(self) -> None:
        self._router.route([self.config.get(PIRQ_ROUTES + index, 1) for index in range(PIRQ_COUNT)])

    def reset(self) -> None:
        """Power-on state: nothing routed."""
        super().reset()
        for index in range(PIRQ_COUNT):
            self.config.set(PIRQ_ROUTES + index, 1, ROUTE_DISABLED)
        self._route()

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``; routes anew."""
        super().load_state(state)
        self._route()


class PowerManagement(PciDevice):
    """82371AB function 3: where the ACPI registers decode, and whether the APM port raises SMIs.

    Its SMBus has no slaves. Deviation: on a machine without SMIs, that of port 0xb2 counts as set up from the
    start, so that firmware leaves it alone.

    Args:
        on_base: Given the I/O base of the ACPI registers, or None, when it changes.
        has_smi: Whether the machine's processors take SMIs.
    """

    def __init__(self, on_base: Callable[[int | None], None], *, has_smi: bool) -> None:
        super().__init__(
            vendor_id=INTEL,
            device_id=0x7113,
            class_code=0x068000,
            revision=3,
            subsystem_vendor_id=SUBSYSTEM_VENDOR,
            subsystem_id=SUBSYSTEM,
            interrupt_pin=1,
        )
        self._on_base = on_base
        self._base: int | None = None
        self.config.define(PM_BASE, 4, 1, 0xFFC0)
        self._activity = (0, APMC_ENABLE) if has_smi else (APMC_ENABLE, 0)
        self.config.define(DEVICE_ACTIVITY_B, 4, *self._activity)
        self.config.define(PM_MISC, 1, 0, PM_IO_ENABLE)
        self.config.define(0x90, 4, 1, 0xFFF0)
        self.config.define(0xD2, 1, 0, 0x0F)

    def take_command(self) -> bool:
        """Whether a command at the APM port raises an SMI."""
        return bool(self.config.get(DEVICE_ACTIVITY_B, 4) & APMC_ENABLE)

    @property
    def base(self) -> int | None:
        """I/O base of the 64 ports of the ACPI registers, None while they do not decode."""
        enabled = self.config.get(PM_MISC, 1) & PM_IO_ENABLE
        base = self.config.get(PM_BASE, 4) & 0xFFC0
        return base if enabled and base else None

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Follow the base and its enable bit."""
        super().config_write(offset, size, value)
        self._update()

    def _update(self) -> None:
        if self.base != self._base:
            self._base = self.base
            self._on_base(self._base)

    def reset(self) -> None:
        """Power-on state: the registers do not decode."""
        super().reset()
        self.config.set(PM_BASE, 4, 1)
        self.config.set(DEVICE_ACTIVITY_B, 4, self._activity[0])
        self.config.set(PM_MISC, 1, 0)
        self._update()

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``; moves the registers."""
        super().load_state(state)
        self._update()
