"""The fixed ACPI tables, one function each.

Reference: ACPI 6.4 §5.2 "ACPI System Description Tables"; PCI Firmware 3.3 §4.1.2 (MCFG).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sublet.devices.platform.hpet import BLOCK_ID, HPET_BASE
from sublet.machine import memory_map as mm

_OEM_ID: Final = b"SUBLET"
_OEM_TABLE_ID: Final = b"SUBLETVM"
_CREATOR: Final = b"SBLT"
_HEADER_SIZE: Final = 36

_SYSTEM_MEMORY: Final = 0
_SYSTEM_IO: Final = 1
RESET_VALUE: Final = 0x06
"""Written to port 0xcf9: full reset (RST_CPU | SYS_RST)."""

# FADT fixed feature flags, §5.2.9 table 5.10.
_WBINVD: Final = 1 << 0
_PROC_C1: Final = 1 << 2
_SLP_BUTTON_ABSENT: Final = 1 << 5
_FIX_RTC_ABSENT: Final = 1 << 6
_TMR_VAL_EXT: Final = 1 << 8
_RESET_REG_SUP: Final = 1 << 10
# FADT IA-PC boot architecture flags, §5.2.9.3; the CMOS RTC is present.
LEGACY_DEVICES: Final = 1 << 0
HAS_8042: Final = 1 << 1
NO_VGA: Final = 1 << 2

_HPET_MINIMUM: Final = 10_000
"""Ticks of the shortest period of which no interrupt is lost: 100 µs."""

_POLARITY_HIGH_LEVEL: Final = 0x000D
_X2APIC_FIRST_ID: Final = 255


@dataclass(frozen=True, slots=True)
class PowerPorts:
    """Where the ACPI fixed hardware is, in ports."""

    pm1_event: int = mm.PM1_EVENT_PORT
    pm1_control: int = mm.PM1_CONTROL_PORT
    timer: int = mm.PM_TIMER_PORT
    gpe0: int = mm.GPE0_PORT
    gpe0_length: int = mm.GPE0_LENGTH

    @classmethod
    def of_block(cls, base: int, gpe0_offset: int, gpe0_length: int) -> PowerPorts:
        """A chipset's register block at ``base``."""
        return cls(base, base + 4, base + 8, base + gpe0_offset, gpe0_length)


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: header with checksum, then ``body``."""
    length = _HEADER_SIZE + len(body)
    head = struct.pack(
        "<4sIBB6s8sI4sI", signature, length, revision, 0, _OEM_ID, _OEM_TABLE_ID, 1, _CREATOR, 1
    )
    data = bytearray(head + body)
    data[9] = _checksum(data)
    return bytes(data)


def build_rsdp(xsdt_gpa: int, rsdt_gpa: int = 0) -> bytes:
    """Root pointer, revision 2; both checksums."""
    data = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM_ID, 2, rsdt_gpa, 36, xsdt_gpa, 0))
    data[8] = _checksum(data[:20])
    data[32] = _checksum(data)
    return bytes(data)


def build_xsdt(tables: list[int]) -> bytes:
    """The list of tables, by guest-physical address."""
    return table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables))


def build_rsdt(tables: list[int]) -> bytes:
    """The list of tables for systems before ACPI 2.0."""
    return table(b"RSDT", 1, struct.pack(f"<{len(tables)}I", *tables))


def build_facs() -> bytes:
    """Firmware control structure, version 2, no waking vector, 64 bytes aligned to 64."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def _io_register(port: int, bits: int, access: int) -> bytes:
    """Generic address structure of an I/O register, §5.2.3.2; ``access`` is 1 byte, 2 word, 3 dword."""
    return struct.pack("<BBBBQ", _SYSTEM_IO, bits, 0, access, port)


_NO_REGISTER: Final = bytes(12)


def _fadt_ports(ports: PowerPorts) -> bytes:
    """The ports as the FADT had them before generic addresses, bytes 56 to 95."""
    pm1 = (ports.pm1_event, 0, ports.pm1_control, 0, 0)
    return struct.pack("<8I8B", *pm1, ports.timer, ports.gpe0, 0, 4, 2, 0, 4, ports.gpe0_length, 0, 0, 0)


_DEFAULT_PORTS: Final = PowerPorts()


def build_fadt(
    facs_gpa: int,
    dsdt_gpa: int,
    ports: PowerPorts = _DEFAULT_PORTS,
    boot_flags: int = LEGACY_DEVICES | NO_VGA,
    *,
    rtc_wakes: bool = False,
) -> bytes:
    """Fixed ACPI description table, revision 6.4, 276 bytes; ACPI mode is always on (no SMI port)."""
    flags = _WBINVD | _PROC_C1 | _SLP_BUTTON_ABSENT | _TMR_VAL_EXT | _RESET_REG_SUP
    flags |= 0 if rtc_wakes else _FIX_RTC_ABSENT
    body = b"".join(
        (
            struct.pack("<IIBBHIBBBB", facs_gpa, dsdt_gpa, 0, 0, mm.SCI_IRQ, 0, 0, 0, 0, 0),
            _fadt_ports(ports),
            # C2 and C3 latencies above their limits: absent. No flush or duty cycle; century byte.
            struct.pack("<HHHHBBBBB", 0xFFF, 0xFFF, 0, 0, 0, 0, 0, 0, 0x32),
            struct.pack("<HBI", boot_flags, 0, flags),
            _io_register(mm.RESET_PORT, 8, 1),
            struct.pack("<BHB", RESET_VALUE, 0, 4),
            struct.pack("<QQ", 0, dsdt_gpa),
            _io_register(ports.pm1_event, 32, 2),
            _NO_REGISTER,
            _io_register(ports.pm1_control, 16, 2),
            _NO_REGISTER,
            _NO_REGISTER,
            _io_register(ports.timer, 32, 3),
            _io_register(ports.gpe0, ports.gpe0_length * 8, 1),
            _NO_REGISTER,
            _NO_REGISTER,
            _NO_REGISTER,
            b"SUBLET\0\0",
        )
    )
    return table(b"FACP", 6, body)


def _local_apic(index: int) -> bytes:
    """Processor local APIC (type 0), or local x2APIC (type 9) where the ID needs it."""
    if index < _X2APIC_FIRST_ID:
        return struct.pack("<BBBBI", 0, 8, index, index, 1)
    return struct.pack("<BBHIII", 9, 16, 0, index, 1, index)


def _source_override(source: int, gsi: int, flags: int) -> bytes:
    return struct.pack("<BBBBIH", 2, 10, 0, source, gsi, flags)


def build_madt(cpus: int, level_irqs: Iterable[int] = ()) -> bytes:
    """Multiple APIC description table: local APICs, one I/O APIC, overrides, NMI at LINT1.

    Args:
        cpus: Number of vCPUs.
        level_irqs: ISA interrupts, besides the SCI, that PCI pins are routed to.
    """
    level = sorted({mm.SCI_IRQ, *level_irqs})
    entries = (
        *(_local_apic(index) for index in range(cpus)),
        struct.pack("<BBBBII", 1, 12, 0, 0, mm.IOAPIC_BASE, 0),
        _source_override(0, 2, 0),
        *(_source_override(irq, irq, _POLARITY_HIGH_LEVEL) for irq in level),
        struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1),
    )
    return table(b"APIC", 5, struct.pack("<II", mm.LAPIC_BASE, 1) + b"".join(entries))


def build_mcfg(base: int = mm.ECAM_BASE, size: int = mm.ECAM_SIZE) -> bytes:
    """Memory-mapped configuration space of segment 0, 1 MiB a bus from bus 0."""
    return table(b"MCFG", 1, struct.pack("<8xQHBB4x", base, 0, 0, (size >> 20) - 1))


def build_hpet(base: int = HPET_BASE) -> bytes:
    """The event timer block at ``base``; its comparators tick every 10 ns.

    Reference: IA-PC HPET 1.0a §3.2.4 "The ACPI 2.0 HPET Description Table (HPET)".
    """
    address = struct.pack("<BBBBQ", _SYSTEM_MEMORY, 64, 0, 0, base)
    return table(b"HPET", 1, struct.pack("<I", BLOCK_ID) + address + struct.pack("<BHB", 0, _HPET_MINIMUM, 0))
