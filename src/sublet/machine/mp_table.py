"""The MP table: processors and interrupts for systems that do not read ACPI.

The firmware of `pc` and `q35` makes its own; this one is for a machine without firmware.

Reference: Intel MultiProcessor Specification 1.4 (242016) chapter 4 "MP Configuration Table".
"""

from __future__ import annotations

import struct
from typing import Final

from sublet.devices.pci.intx import intx_gsi
from sublet.machine import memory_map as mm

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
    """Pointer and table, for ``gpa``, which is a multiple of 16 below 1 MiB.

    Args:
        cpus: Number of vCPUs; their APIC IDs are 0 to ``cpus`` - 1.
        gpa: Where the pointer goes; the table follows it.
    """
    entries = [
        *(_processor(index) for index in range(cpus)),
        struct.pack("<BB6s", _BUS, _PCI_BUS, b"PCI   "),
        struct.pack("<BB6s", _BUS, _ISA_BUS, b"ISA   "),
        struct.pack("<BBBBI", _IOAPIC, _IOAPIC_ID, _IOAPIC_VERSION, _ENABLED, mm.IOAPIC_BASE),
        *_isa_interrupts(),
        *(_pci_interrupt(slot, pin) for slot in _SLOTS for pin in _PINS),
        struct.pack("<BBHBBBB", _LOCAL_INTERRUPT, _EXTINT, _AS_BUS, _ISA_BUS, 0, 0, 0),
        struct.pack("<BBHBBBB", _LOCAL_INTERRUPT, _NMI, _AS_BUS, _ISA_BUS, 0, _ALL_LOCAL_APICS, 1),
    ]
    return _pointer(gpa + 16) + _table(entries)


def _pointer(table_gpa: int) -> bytes:
    pointer = bytearray(struct.pack("<4sIBBB5x", b"_MP_", table_gpa, 1, _SPECIFICATION, 0))
    pointer[10] = -sum(pointer) & 0xFF
    return bytes(pointer)


def _table(entries: list[bytes]) -> bytes:
    body = b"".join(entries)
    head = struct.pack(
        "<4sHBB8s12s", b"PCMP", 44 + len(body), _SPECIFICATION, 0, b"SUBLET  ", b"MICROVM     "
    )
    table = bytearray(head + struct.pack("<IHHIHBx", 0, 0, len(entries), mm.LAPIC_BASE, 0, 0) + body)
    table[7] = -sum(table) & 0xFF
    return bytes(table)


def _processor(index: int) -> bytes:
    """Signature and features are for systems that cannot ask the processor."""
    flags = _ENABLED | (_BOOTSTRAP if index == 0 else 0)
    return struct.pack("<BBBBII8x", _PROCESSOR, index, _LOCAL_APIC_VERSION, flags, 0x600, _FEATURE_FPU_APIC)


def _isa_interrupts() -> list[bytes]:
    """Interrupt n is input n, but for the timer, which has the cascade's; the SCI is level-triggered."""
    irqs = [irq for irq in range(16) if irq != _CASCADE]
    return [
        struct.pack(
            "<BBHBBBB",
            _IO_INTERRUPT,
            _INT,
            _HIGH_LEVEL if irq == mm.SCI_IRQ else _AS_BUS,
            _ISA_BUS,
            irq,
            _IOAPIC_ID,
            _CASCADE if irq == mm.TIMER_IRQ else irq,
        )
        for irq in irqs
    ]


def _pci_interrupt(slot: int, pin: int) -> bytes:
    source = slot << 2 | pin
    return struct.pack(
        "<BBHBBBB", _IO_INTERRUPT, _INT, _HIGH_LEVEL, _PCI_BUS, source, _IOAPIC_ID, intx_gsi(slot, pin)
    )
