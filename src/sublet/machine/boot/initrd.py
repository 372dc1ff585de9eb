"""Where the initial RAM disk goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sublet.errors import UsageError
from sublet.hw import GuestMemory
from sublet.machine.boot.files import open_boot_file
from sublet.machine.memory_map import HIGH_MEMORY, MIB, PAGE_SIZE, MemoryMap

_BELOW_4_GIB: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Initrd:
    """A loaded initial RAM disk; size 0 (and address 0) when the machine has none."""

    gpa: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class InitrdRules:
    """What the kernel accepts."""

    kernel_start: int
    kernel_end: int
    """First byte after the kernel, its BSS and what it needs to unpack itself."""
    address_max: int = _BELOW_4_GIB
    """Highest address that the initrd's last byte may have."""
    above_4_gib: bool = False


def place_initrd(size: int, memory: MemoryMap, rules: InitrdRules) -> int | None:
    """The highest page-aligned address where ``size`` bytes fit; None when there is none."""
    ceilings = [min(memory.low_ram_end, rules.address_max + 1)]
    if rules.above_4_gib and len(memory.ram) > 1:
        ceilings.append(memory.ram[-1].end)
    for ceiling in ceilings:
        gpa = (ceiling - size) // PAGE_SIZE * PAGE_SIZE
        if not memory.holds(gpa, size):
            continue
        if gpa >= rules.kernel_end:
            return gpa
        gpa = (min(ceiling, rules.kernel_start) - size) // PAGE_SIZE * PAGE_SIZE
        if gpa >= HIGH_MEMORY:
            return gpa
    return None


def load_initrd(path: Path | None, memory: GuestMemory, layout: MemoryMap, rules: InitrdRules) -> Initrd:
    """Copy the file into RAM, as high as the kernel allows.

    Raises:
        UsageError: No such file, or it does not fit beside the kernel.
        HostRefused: It cannot be read.
    """
    if path is None:
        return Initrd()
    with open_boot_file(path, "initrd") as file:
        if file.size == 0:
            return Initrd()
        gpa = place_initrd(file.size, layout, rules)
        if gpa is None:
            raise UsageError(
                f"the initrd {path} ({file.size / MIB:.1f} MiB) does not fit beside the kernel "
                f"({(rules.kernel_end - rules.kernel_start) / MIB:.1f} MiB) "
                f"in {layout.ram_size // MIB} MiB of memory",
                remedy="Give more --memory.",
            )
        file.copy_to(memory, gpa, 0, file.size, "initrd")
        return Initrd(gpa, file.size)
