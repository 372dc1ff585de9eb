"""ACPI tables of the machines with firmware, as they are once the firmware has set up the chipset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sublet.machine import memory_map as mm
from sublet.machine.acpi import aml, dsdt, tables
from sublet.machine.acpi.linker import Linker
from sublet.machine.acpi.tables import PowerPorts
from sublet.machine.mp_table import build_configuration, build_pointer

Range = tuple[int, int]
"""Start and end, half-open."""

_TABLES_SIZE: Final = 0x10000
_SCRIPT_SIZE: Final = 0x1000
_MP_TABLE_SIZE: Final = 0x1000
_PIC_MODE: Final = "\\PICF"


@dataclass(frozen=True)
class FirmwareAcpi:
    """What the tables say."""

    cpus: int
    ports: PowerPorts
    ecam: Range | None
    """Base and *size* of extended configuration space."""
    memory_windows: tuple[Range, ...]
    """Addresses below 4 GiB that the root bridge forwards."""
    high_window: Range | None
    """The same above 4 GiB."""
    isa_gsi: Callable[[int, int], int | None]
    """Which interrupt of 0 to 15 a slot's pin is routed to."""
    apic_gsi: Callable[[int, int], int] | None
    """Which I/O APIC input it drives besides, in a chipset that has those."""
    level_irqs: frozenset[int]
    """Interrupts of 0 to 15 that PCI pins are routed to."""
    isa_devices: bytes
    """AML of the devices that cannot be discovered."""
    mp_product: str | None
    """The machine's name in an MP table, where the firmware is one that places it."""


@dataclass(frozen=True)
class TableFiles:
    """Contents of the files of fw_cfg; sizes do not depend on the machine's state."""

    tables: bytes
    rsdp: bytes
    script: bytes
    mp_table: bytes
    mp_pointer: bytes


def build_table_files(machine: FirmwareAcpi) -> TableFiles:
    """All tables, linked by the firmware."""
    linker = Linker()
    facs = linker.place(tables.build_facs())
    dsdt_offset = linker.place(tables.table(b"DSDT", 2, _dsdt(machine)))
    boot_flags = tables.LEGACY_DEVICES | tables.HAS_8042
    fadt = tables.build_fadt(facs, dsdt_offset, machine.ports, boot_flags, rtc_wakes=True)
    listed = [
        linker.place_linked(fadt, [(36, 4), (40, 4), (140, 8)]),
        linker.place(tables.build_madt(machine.cpus, machine.level_irqs)),
        linker.place(tables.build_hpet()),
    ]
    if machine.ecam is not None:
        listed.append(linker.place(tables.build_mcfg(*machine.ecam)))
    header = 36
    rsdt = linker.place_linked(
        tables.build_rsdt(listed), [(header + 4 * index, 4) for index in range(len(listed))]
    )
    xsdt = linker.place_linked(
        tables.build_xsdt(listed), [(header + 8 * index, 8) for index in range(len(listed))]
    )
    rsdp = linker.link_rsdp(tables.build_rsdp(xsdt, rsdt))
    mp_table, mp_pointer = b"", b""
    if machine.mp_product is not None:
        mp_pointer = linker.link_mp_pointer(build_pointer(0))
        mp_table = build_configuration(machine.cpus, machine.mp_product, machine.apic_gsi or machine.isa_gsi)
    return TableFiles(
        tables=bytes(linker.tables).ljust(_TABLES_SIZE, b"\0"),
        rsdp=rsdp,
        script=linker.script().ljust(_SCRIPT_SIZE, b"\0"),
        mp_table=mp_table.ljust(_MP_TABLE_SIZE, b"\0"),
        mp_pointer=mp_pointer,
    )


def _dsdt(machine: FirmwareAcpi) -> bytes:
    pic_mode = aml.name(_PIC_MODE, aml.integer(0)) + aml.method("\\_PIC", 1, aml.store(aml.ARG0, _PIC_MODE))
    devices = (
        *(dsdt.processor(index) for index in range(machine.cpus)),
        dsdt.motherboard(None, machine.ecam),
        dsdt.pci_host(_windows(machine), _routes(machine), express=machine.ecam is not None),
        machine.isa_devices,
        dsdt.real_time_clock(),
        dsdt.panic_device(),
    )
    return dsdt.sleep_states(suspend=True) + pic_mode + aml.scope("\\_SB", *devices)


def _windows(machine: FirmwareAcpi) -> bytes:
    windows = [
        aml.io_window(0, mm.PCI_CONFIG_PORT),
        aml.io_window(mm.PCI_CONFIG_PORT + 8, 0x10000),
        aml.memory_window_32(mm.VGA_BASE, 0xC0000),
        *(aml.memory_window_32(*window) for window in machine.memory_windows),
    ]
    if machine.high_window is not None:
        windows.append(aml.memory_window_64(*machine.high_window))
    return b"".join(windows)


def _routes(machine: FirmwareAcpi) -> bytes:
    """``_PRT`` by the interrupt model that the system chose with ``_PIC`` (ACPI 6.4 §5.8.1)."""
    by_pic = dsdt.interrupt_routes(machine.isa_gsi)
    if machine.apic_gsi is None:
        return aml.name("_PRT", by_pic)
    by_apic = dsdt.interrupt_routes(machine.apic_gsi)
    return aml.method(
        "_PRT",
        0,
        aml.if_(aml.name_string(_PIC_MODE), aml.return_(by_apic)),
        aml.return_(by_pic),
    )
