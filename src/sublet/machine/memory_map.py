"""The guest-physical address map and the port map of a machine, as tables.

Drawn and explained in docs/design/memory-map.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from sublet.errors import HostRefused, UsageError

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
PAGE_SIZE: Final = 4096

# Below 1 MiB: what the boot loaders write, and what firmware would own.
BOOT_GDT: Final = 0x500
BOOT_SETUP_DATA: Final = 0x5000
BOOT_START_INFO: Final = 0x6000
BOOT_ZERO_PAGE: Final = 0x7000
BOOT_STACK_TOP: Final = 0x8FF0
BOOT_PAGE_TABLES: Final = 0x9000
BOOT_MULTIBOOT: Final = 0x10000
BOOT_MULTIBOOT_SIZE: Final = 0x10000
BOOT_CMDLINE: Final = 0x20000
BOOT_CMDLINE_SIZE: Final = 0x10000
BIOS_TOP: Final = 0x10_0000
"""What the BIOS may keep for tables below the end of low RAM."""
EBDA_BASE: Final = 0x9FC00
VGA_BASE: Final = 0xA0000
ACPI_BASE: Final = 0xE0000
MP_TABLE_BASE: Final = 0xFF000
"""Behind the ACPI tables, where systems look for it too (MP 1.4 §4 "MP Configuration Table")."""
ACPI_END: Final = 0x100000
HIGH_MEMORY: Final = 0x100000

# RAM ends at 3 GiB and goes on at 4 GiB; devices live between the two.
LOW_RAM_LIMIT: Final = 0xC000_0000
Q35_LOW_RAM_LIMIT: Final = 0x8000_0000
"""On q35 firmware puts extended configuration space at 0xb0000000 and BARs around it."""
HIGH_RAM_BASE: Final = 0x1_0000_0000
ECAM_BASE: Final = 0xE000_0000
ECAM_SIZE: Final = MIB
"""Of bus 0, the only one. Linux looks for devices on all that are announced: 16,000 exits for 256 buses."""
IOAPIC_BASE: Final = 0xFEC0_0000
LAPIC_BASE: Final = 0xFEE0_0000

PCI_LOW_WINDOW: Final = (0xC000_0000, 0xE000_0000)
"""32-bit BARs, half-open; lies between RAM and ECAM."""
PCI_HIGH_WINDOW_SIZE: Final = 64 * GIB
PCI_HIGH_WINDOW_MINIMUM: Final = 256 * GIB
"""64-bit BARs start here or above RAM; 256 GiB fits the 39 address bits of small processors."""
PCI_IO_WINDOW: Final = (0x1000, 0x1_0000)
"""I/O BARs, half-open."""

# Ports.
COM1_PORT: Final = 0x3F8
COM1_IRQ: Final = 4
PVPANIC_PORT: Final = 0x505
PM1_EVENT_PORT: Final = 0x600
PM1_CONTROL_PORT: Final = 0x604
PM_TIMER_PORT: Final = 0x608
GPE0_PORT: Final = 0x620
GPE0_LENGTH: Final = 4
PCI_CONFIG_PORT: Final = 0xCF8
RESET_PORT: Final = 0xCF9
TIMER_IRQ: Final = 0
SCI_IRQ: Final = 9
RTC_PORT: Final = 0x70
RTC_IRQ: Final = 8

E820_RAM: Final = 1
E820_RESERVED: Final = 2

MINIMUM_MEMORY_MIB: Final = 2


@dataclass(frozen=True, slots=True)
class RamRegion:
    """One run of RAM; ``offset`` is where it starts in the machine's RAM block."""

    gpa: int
    size: int
    offset: int

    @property
    def end(self) -> int:
        return self.gpa + self.size


@dataclass(frozen=True, slots=True)
class E820Entry:
    """One row of the BIOS memory map (ACPI 6.4 §15 "System Address Map Interfaces")."""

    gpa: int
    size: int
    kind: int


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """Where RAM and the PCI windows of one machine lie. Made by `layout`."""

    ram: tuple[RamRegion, ...]
    pci_high_window: tuple[int, int]

    @property
    def low_ram_end(self) -> int:
        """End of the RAM that starts at 0, at most 3 GiB."""
        return self.ram[0].end

    @property
    def ram_size(self) -> int:
        return sum(region.size for region in self.ram)

    def holds(self, gpa: int, size: int) -> bool:
        """Whether ``size`` bytes at ``gpa`` are RAM that a loaded image may use (1 MiB and up)."""
        return gpa >= HIGH_MEMORY and any(
            region.gpa <= gpa and gpa + size <= region.end for region in self.ram
        )

    def e820(self) -> tuple[E820Entry, ...]:
        """The memory map that the guest is told, by address, without overlaps."""
        low = [
            E820Entry(0, EBDA_BASE, E820_RAM),
            E820Entry(EBDA_BASE, VGA_BASE - EBDA_BASE, E820_RESERVED),
            E820Entry(ACPI_BASE, ACPI_END - ACPI_BASE, E820_RESERVED),
            E820Entry(HIGH_MEMORY, self.low_ram_end - HIGH_MEMORY, E820_RAM),
            E820Entry(ECAM_BASE, ECAM_SIZE, E820_RESERVED),
        ]
        return tuple(low) + tuple(E820Entry(r.gpa, r.size, E820_RAM) for r in self.ram[1:])


def _align_up(value: int, alignment: int) -> int:
    return (value + alignment - 1) // alignment * alignment


def layout(memory_mib: int, machine: str = "microvm") -> MemoryMap:
    """Lay out ``memory_mib`` MiB of RAM for one of `sublet.machine.config.MachineName`.

    Raises:
        UsageError: Less than 2 MiB.
    """
    if memory_mib < MINIMUM_MEMORY_MIB:
        raise UsageError(
            f"{memory_mib} MiB of memory is too little for a machine",
            remedy=f"Give at least {MINIMUM_MEMORY_MIB} MiB; a Linux guest wants 128 MiB or more.",
        )
    size = memory_mib * MIB
    low = min(size, Q35_LOW_RAM_LIMIT if machine == "q35" else LOW_RAM_LIMIT)
    ram = [RamRegion(0, low, 0)]
    if size > low:
        ram.append(RamRegion(HIGH_RAM_BASE, size - low, low))
    start = max(PCI_HIGH_WINDOW_MINIMUM, _align_up(ram[-1].end, PCI_HIGH_WINDOW_SIZE))
    return MemoryMap(tuple(ram), (start, start + PCI_HIGH_WINDOW_SIZE))


def host_memory_mib() -> int:
    """RAM of the host in MiB, as the kernel reports it."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB


def check_host_memory(memory_mib: int) -> None:
    """Refuse a machine that is larger than the whole host.

    Raises:
        HostRefused: Naming both sizes. Less than that may be more than is free: RAM is taken
            from the host page by page, as the guest touches it.
    """
    total = host_memory_mib()
    if memory_mib > total:
        raise HostRefused(
            f"the machine asks for {memory_mib} MiB of memory, this host has {total} MiB",
            remedy="Give a smaller --memory.",
        )
