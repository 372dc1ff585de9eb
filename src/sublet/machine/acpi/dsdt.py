"""The Differentiated System Description Table: the devices that a guest cannot discover by itself."""

from __future__ import annotations

from sublet.devices.pci import intx_gsi
from sublet.devices.platform.acpi_pm import SLP_TYP_S5
from sublet.machine import memory_map as mm
from sublet.machine.acpi import aml

_SLOTS = 32
_PINS = 4


def build_dsdt_body(cpus: int, pci_high_window: tuple[int, int]) -> bytes:
    """AML of the whole table, without its header."""
    sleep = aml.name("\\_S5", aml.package(*[aml.integer(value) for value in (SLP_TYP_S5, SLP_TYP_S5, 0, 0)]))
    devices = (
        *(_processor(index) for index in range(cpus)),
        _motherboard(),
        _pci_host(pci_high_window),
        _serial_port(),
        _real_time_clock(),
        _panic_device(),
    )
    return sleep + aml.scope("\\_SB", *devices)


def _processor(index: int) -> bytes:
    """ACPI 6.4 §8.4 "Declaring Processors"; the UID ties it to the MADT."""
    return aml.device(
        f"C{index:03X}",
        aml.name("_HID", aml.string("ACPI0007")),
        aml.name("_UID", aml.integer(index)),
    )


def _motherboard() -> bytes:
    """Ranges that no other device may take: ECAM (PCI Firmware 3.3 §4.1.2) and the ACPI ports."""
    crs = aml.resources(
        aml.fixed_memory(mm.ECAM_BASE, mm.ECAM_SIZE),
        aml.io_ports(mm.PM1_EVENT_PORT, mm.PM_TIMER_PORT + 4 - mm.PM1_EVENT_PORT),
        aml.io_ports(mm.GPE0_PORT, mm.GPE0_LENGTH),
    )
    return aml.device(
        "MBRD",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", crs),
    )


def _pci_host(high_window: tuple[int, int]) -> bytes:
    crs = aml.resources(
        aml.bus_numbers(0, 255),
        aml.io_ports(mm.PCI_CONFIG_PORT, 8),
        aml.io_window(*mm.PCI_IO_WINDOW),
        aml.memory_window_32(*mm.PCI_LOW_WINDOW),
        aml.memory_window_64(*high_window),
    )
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_SEG", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_CCA", aml.integer(1)),
        aml.name("_CRS", crs),
        aml.name("_PRT", _interrupt_routes()),
    )


def _interrupt_routes() -> bytes:
    """``_PRT``: pin of each slot to its GSI, no link devices. ACPI 6.4 §6.2.13."""
    return aml.package(
        *(
            aml.package(
                aml.integer(slot << 16 | 0xFFFF),
                aml.integer(pin),
                aml.integer(0),
                aml.integer(intx_gsi(slot, pin)),
            )
            for slot in range(_SLOTS)
            for pin in range(_PINS)
        )
    )


def _serial_port() -> bytes:
    return aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(1)),
        aml.name("_CRS", aml.resources(aml.io_ports(mm.COM1_PORT, 8), aml.irq(mm.COM1_IRQ))),
    )


def _real_time_clock() -> bytes:
    return aml.device(
        "RTC0",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name("_CRS", aml.resources(aml.io_ports(mm.RTC_PORT, 2), aml.irq(mm.RTC_IRQ))),
    )


def _panic_device() -> bytes:
    """QEMU docs/specs/pvpanic: the device that a guest tells of its panic."""
    return aml.device(
        "PEVT",
        aml.name("_HID", aml.string("QEMU0001")),
        aml.name("_STA", aml.integer(0xF)),
        aml.name("_CRS", aml.resources(aml.io_ports(mm.PVPANIC_PORT, 1))),
    )
