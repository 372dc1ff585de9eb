"""The MP table: processors and interrupts for systems that do not read ACPI.

SeaBIOS lists one processor a package; ours lists each, as a system without ACPI has no other way to find
them. Whoever looks for the table takes the first, which is ours (`linker`).

Reference: Intel MultiProcessor Specification 1.4 (242016) chapter 4 "MP Configuration Table".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from sublet.devices.pci.intx import intx_gsi
from sublet.machine import memory_map as mm

POINTER_SIZE: Final = 16
POINTER_ADDRESS: Final = 4
"""Offset of the table's address in the pointer."""
POINTER_CHECKSUM: Final = 10
_SPECIFICATION: Final = 4
"""Revision 1.4."""
_PROCESSOR, _BUS, _IOAPIC, _IO_INTERRUPT, _LOCAL_INTERRUPT = range(5)
_INT, _NMI, _EXTINT = 0, 1, 3
_ENABLED, _BOOTSTRAP = 1, 2
_LOCAL_APIC_VERSION, _IOAPIC_VERSION = 0x14, 0x11
_IOAPIC_ID: Final = 0
_PCI_BUS, _ISA_BUS = 0, 1
_AS_BUS, _HIGH_LEVEL = 0x0, 0xD
"""Polarity and trigger: as the bus has it; active high and level-triggered."""
_ALL_LOCAL_APICS: Final = 0xFF
_FEATURE_FPU_APIC: Final = 0x201
_CASCADE: Final = 2
_SLOTS, _PINS = range(1, 32), range(4)


def build_mp_table(cpus: int, gpa: int) -> bytes:
    """Pointer and table of the machine without firmware, for ``gpa``, a multiple of 16 below 1 MiB.

    Args:
        cpus: Number of vCPUs; their APIC IDs are 0 to ``cpus`` - 1.
        gpa: Where the pointer goes; the table follows it.
    """
    return build_pointer(gpa + POINTER_SIZE) + build_configuration(cpus, "MICROVM", intx_gsi)


def build_pointer(table_gpa: int) -> bytes:
    """The floating pointer, by which systems find the table."""
    pointer = bytearray(struct.pack("<4sIBBB5x", b"_MP_", table_gpa, 1, _SPECIFICATION, 0))
    pointer[POINTER_CHECKSUM] = -sum(pointer) & 0xFF
    return bytes(pointer)


def build_configuration(cpus: int, product: str, pci_gsi: Callable[[int, int], int | None]) -> bytes:
    """The table.

    Args:
        cpus: Number of vCPUs; their APIC IDs are 0 to ``cpus`` - 1.
        product: The machine's name, at most 12 characters.
        pci_gsi: The I/O APIC's input of a slot's pin (0 for INTA), if it has one.
    """
    pins = [(slot << 2 | pin, pci_gsi(slot, pin)) for slot in _SLOTS for pin in _PINS]
    routes = [(source, gsi) for source, gsi in pins if gsi is not None]
    entries = [
        *(_processor(index) for index in range(cpus)),
        struct.pack("<BB6s", _BUS, _PCI_BUS, b"PCI   "),
        struct.pack("<BB6s", _BUS, _ISA_BUS, b"ISA   "),
        struct.pack("<BBBBI", _IOAPIC, _IOAPIC_ID, _IOAPIC_VERSION, _ENABLED, mm.IOAPIC_BASE),
        *_isa_interrupts({gsi for _, gsi in routes}),
        *(_interrupt(_HIGH_LEVEL, _PCI_BUS, *route) for route in routes),
        struct.pack("<BBHBBBB", _LOCAL_INTERRUPT, _EXTINT, _AS_BUS, _ISA_BUS, 0, 0, 0),
        struct.pack("<BBHBBBB", _LOCAL_INTERRUPT, _NMI, _AS_BUS, _ISA_BUS, 0, _ALL_LOCAL_APICS, 1),
    ]
    return _table(product, entries)


def _table(product: str, entries: list[bytes]) -> bytes:
    body = b"".join(entries)
    name = product.encode("ascii").ljust(12)
    head = struct.pack("<4sHBB8s12s", b"PCMP", 44 + len(body), _SPECIFICATION, 0, b"SUBLET  ", name)
    table = bytearray(head + struct.pack("<IHHIHBx", 0, 0, len(entries), mm.LAPIC_BASE, 0, 0) + body)
    table[7] = -sum(table) & 0xFF
    return bytes(table)


def _processor(index: int) -> bytes:
    """Signature and features are for systems that cannot ask the processor."""
    flags = _ENABLED | (_BOOTSTRAP if index == 0 else 0)
    return struct.pack("<BBBBII8x", _PROCESSOR, index, _LOCAL_APIC_VERSION, flags, 0x600, _FEATURE_FPU_APIC)


def _isa_interrupts(taken: set[int]) -> list[bytes]:
    """Interrupt n is input n, but for the timer, which has the cascade's; the SCI is level-triggered.

    Args:
        taken: Inputs that PCI pins drive: these are not the ISA bus's.
    """
    inputs = {irq: _CASCADE if irq == mm.TIMER_IRQ else irq for irq in range(16) if irq != _CASCADE}
    return [
        _interrupt(_HIGH_LEVEL if irq == mm.SCI_IRQ else _AS_BUS, _ISA_BUS, irq, gsi)
        for irq, gsi in inputs.items()
        if gsi not in taken
    ]


def _interrupt(flags: int, bus: int, source: int, gsi: int) -> bytes:
    return struct.pack("<BBHBBBB", _IO_INTERRUPT, _INT, flags, bus, source, _IOAPIC_ID, gsi)
