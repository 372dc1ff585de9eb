"""ACPI tables of a machine, built for one place in the BIOS area."""

from __future__ import annotations

from sublet.machine.acpi import tables
from sublet.machine.acpi.dsdt import build_dsdt_body
from sublet.machine.memory_map import ACPI_BASE, MP_TABLE_BASE

__all__ = ["build_tables"]

_ALIGNMENT = 64


class _Area:
    """Places tables one after the other from `ACPI_BASE`."""

    def __init__(self) -> None:
        self.data = bytearray()

    def place(self, blob: bytes) -> int:
        """Append ``blob``, aligned; returns its guest-physical address."""
        self.data += bytes(-len(self.data) % _ALIGNMENT)
        gpa = ACPI_BASE + len(self.data)
        self.data += blob
        if ACPI_BASE + len(self.data) > MP_TABLE_BASE:
            raise ValueError(f"ACPI tables of {len(self.data)} bytes do not fit in the BIOS area")
        return gpa


def build_tables(cpus: int, pci_high_window: tuple[int, int]) -> bytes:
    """All tables as one blob for `ACPI_BASE`; the RSDP comes first.

    Args:
        cpus: Number of vCPUs; their APIC IDs are 0 to ``cpus`` - 1.
        pci_high_window: Guest-physical window of 64-bit BARs, half-open.
    """
    area = _Area()
    area.place(bytes(len(tables.build_rsdp(0))))
    facs = area.place(tables.build_facs())
    dsdt = area.place(tables.table(b"DSDT", 2, build_dsdt_body(cpus, pci_high_window)))
    listed = (tables.build_fadt(facs, dsdt), tables.build_madt(cpus), tables.build_mcfg())
    xsdt = area.place(tables.build_xsdt([area.place(blob) for blob in listed]))
    rsdp = tables.build_rsdp(xsdt)
    area.data[: len(rsdp)] = rsdp
    return bytes(area.data)
