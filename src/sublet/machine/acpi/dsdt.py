"""The Differentiated System Description Table: the devices that a guest cannot discover by itself."""

from __future__ import annotations

from collections.abc import Callable

from sublet.devices.pci import intx_gsi
from sublet.devices.platform.acpi_pm import SLP_TYP_S3, SLP_TYP_S5
from sublet.machine import memory_map as mm
from sublet.machine.acpi import aml
from sublet.machine.acpi.tables import PowerPorts
from sublet.units import MIB

_SLOTS = 32
_PINS = 4


def build_dsdt_body(cpus: int, pci_high_window: tuple[int, int]) -> bytes:
    """AML of the whole table, without its header."""
    devices = (
        *(processor(index) for index in range(cpus)),
        motherboard(PowerPorts(), (mm.ECAM_BASE, mm.ECAM_SIZE)),
        pci_host(_windows(pci_high_window), _interrupt_routes(), last_bus=mm.ECAM_SIZE // MIB - 1),
        serial_port(1, mm.COM1_PORT, mm.COM1_IRQ),
        real_time_clock(),
        panic_device(),
    )
    return sleep_states() + aml.scope("\\_SB", *devices)


def processor(index: int) -> bytes:
    """ACPI 6.4 §8.4 "Declaring Processors"; the UID ties it to the MADT."""
    return aml.device(
        f"C{index:03X}",
        aml.name("_HID", aml.string("ACPI0007")),
        aml.name("_UID", aml.integer(index)),
    )


def sleep_states(*, suspend: bool = False) -> bytes:
    """``\\_S5``, and with ``suspend`` ``\\_S3``: what PM1 control takes to sleep. ACPI 6.4 §7.4.2."""
    named = {"\\_S5": SLP_TYP_S5} | ({"\\_S3": SLP_TYP_S3} if suspend else {})
    return b"".join(
        aml.name(name, aml.package(*[aml.integer(value) for value in (code, code, 0, 0)]))
        for name, code in named.items()
    )


def motherboard(ports: PowerPorts | None, ecam: tuple[int, int] | None) -> bytes:
    """Ranges that no other device may take: ECAM (PCI Firmware 3.3 §4.1.2) and the ACPI ports.

    Args:
        ports: The ACPI registers; None where a function of the chipset has them as its own.
        ecam: Base and size.
    """
    ranges = [] if ecam is None else [aml.fixed_memory(*ecam)]
    if ports is not None:
        ranges.append(aml.io_ports(ports.pm1_event, ports.timer + 4 - ports.pm1_event))
        ranges.append(aml.io_ports(ports.gpe0, ports.gpe0_length))
    crs = aml.resources(*ranges)
    return aml.device(
        "MBRD",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", crs),
    )


def _windows(high_window: tuple[int, int]) -> bytes:
    """Resources that the host bridge hands down."""
    return (
        aml.io_window(*mm.PCI_IO_WINDOW)
        + aml.memory_window_32(*mm.PCI_LOW_WINDOW)
        + aml.memory_window_64(*high_window)
    )


def pci_host(windows: bytes, routes: bytes, *, express: bool = True, last_bus: int = 255) -> bytes:
    """The root bridge.

    Args:
        windows: Resource descriptors of what it forwards.
        routes: Value of ``_PRT``, or a method of that name.
        express: Whether it has extended configuration space.
        last_bus: Up to which number buses may exist below it.
    """
    crs = aml.resources(aml.bus_numbers(0, last_bus), aml.io_ports(mm.PCI_CONFIG_PORT, 8), windows)
    hid = "PNP0A08" if express else "PNP0A03"
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id(hid)),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_SEG", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_CCA", aml.integer(1)),
        aml.name("_CRS", crs),
        routes,
    )


def interrupt_routes(gsi_of: Callable[[int, int], int | None]) -> bytes:
    """The package of ``_PRT``: pin of each slot to its GSI, no link devices. ACPI 6.4 §6.2.13.

    Args:
        gsi_of: The GSI of a slot's pin, None where it has none.
    """
    places = [(slot, pin, gsi_of(slot, pin)) for slot in range(_SLOTS) for pin in range(_PINS)]
    return aml.package(
        *(
            aml.package(aml.integer(slot << 16 | 0xFFFF), aml.integer(pin), aml.integer(0), aml.integer(gsi))
            for slot, pin, gsi in places
            if gsi is not None
        )
    )


def _interrupt_routes() -> bytes:
    return aml.name("_PRT", interrupt_routes(intx_gsi))


def serial_port(number: int, port: int, irq: int) -> bytes:
    """COM1 or COM2."""
    return aml.device(
        f"COM{number}",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(number)),
        aml.name("_CRS", aml.resources(aml.io_ports(port, 8), aml.irq(irq))),
    )


def real_time_clock() -> bytes:
    """MC146818."""
    return aml.device(
        "RTC0",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name("_CRS", aml.resources(aml.io_ports(mm.RTC_PORT, 2), aml.irq(mm.RTC_IRQ))),
    )


def panic_device() -> bytes:
    """QEMU docs/specs/pvpanic: the device that a guest tells of its panic."""
    return aml.device(
        "PEVT",
        aml.name("_HID", aml.string("QEMU0001")),
        aml.name("_STA", aml.integer(0xF)),
        aml.name("_CRS", aml.resources(aml.io_ports(mm.PVPANIC_PORT, 1))),
    )


def keyboard_and_mouse() -> bytes:
    """The two ports of an 8042."""
    crs = aml.resources(aml.io_ports(0x60, 1), aml.io_ports(0x64, 1), aml.irq(1))
    return aml.device("KBD0", aml.name("_HID", aml.eisa_id("PNP0303")), aml.name("_CRS", crs)) + aml.device(
        "MOU0",
        aml.name("_HID", aml.eisa_id("PNP0F13")),
        aml.name("_CRS", aml.resources(aml.irq(12))),
    )


def floppy_controller() -> bytes:
    """82077AA."""
    crs = aml.resources(aml.io_ports(0x3F2, 4), aml.io_ports(0x3F7, 1), aml.irq(6), aml.dma(2))
    return aml.device("FDC0", aml.name("_HID", aml.eisa_id("PNP0700")), aml.name("_CRS", crs))


def high_precision_timer(base: int) -> bytes:
    """HPET: 1 KiB at ``base``."""
    return aml.device(
        "HPET",
        aml.name("_HID", aml.eisa_id("PNP0103")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resources(aml.fixed_memory(base, 0x400))),
    )
