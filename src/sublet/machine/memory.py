"""A machine's RAM, and the memslots through which the guest sees it and its devices' memory."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Sequence
from typing import NamedTuple

from sublet.engine import RamBlock, Vm
from sublet.machine import memory_map as mm


class Placement(NamedTuple):
    """Where a piece of memory shows; all in bytes, multiples of 4 KiB."""

    gpa: int
    size: int
    block: RamBlock
    offset: int = 0
    readonly: bool = False
    smm: bool = False
    """vCPUs in system-management mode find it there, in place of what all others do."""


class SystemMemory:
    """One block of host memory for all RAM, mapped as the address map says. Any thread.

    Args:
        vm: Where to map it.
        layout: The address map.
        ram: What a reset has left of RAM, of the same size; None: zeroes.
    """

    def __init__(self, vm: Vm, layout: mm.MemoryMap, ram: RamBlock | None = None) -> None:
        self.layout = layout
        self.ram = RamBlock(layout.ram_size) if ram is None else ram
        self._vm = vm
        self._lock = threading.Lock()
        self._next_slot = 0
        self._free_slots: list[int] = []
        self._above_hole = 0
        self._hidden = 0
        self._ram_slots = self.change((), [Placement(r.gpa, r.size, self.ram, r.offset) for r in layout.ram])

    def map(self, placement: Placement) -> int:
        """Show a piece of memory; returns its memslot, for `change`."""
        return self.change((), (placement,))[0]

    def unmap(self, slot: int) -> None:
        """Take away what `map` or `change` made."""
        self.change((slot,), ())

    def change(self, gone: Sequence[int], new: Sequence[Placement]) -> list[int]:
        """Take memslots away and show other pieces of memory at one moment.

        A vCPU that runs code there, or looks, finds what was before or what is after, as on hardware, and
        never a hole.

        Returns:
            The memslots of ``new``, in order.
        """
        if not gone and not new:
            return []
        slots = self._take_numbers(len(new))
        self._vm.change_memslots(gone, [(slot, *place) for slot, place in zip(slots, new, strict=True)])
        with self._lock:
            self._free_slots.extend(gone)
        return slots

    def _take_numbers(self, count: int) -> list[int]:
        with self._lock:
            while len(self._free_slots) < count:
                self._free_slots.append(self._next_slot)
                self._next_slot += 1
            return [self._free_slots.pop() for _ in range(count)]

    def overlaps(self, gpa: int, size: int) -> bool:
        """Whether something is mapped in the range."""
        return any(
            gpa < start + length and start < gpa + size for _, start, length, _ in self._vm.memory.slots()
        )

    def open_legacy_hole(self) -> None:
        """Take the RAM from 640 KiB to 1 MiB off the bus: video memory, and what the chipset shadows."""
        low = self.layout.ram[0]
        below = Placement(0, mm.VGA_BASE, self.ram)
        above = Placement(mm.HIGH_MEMORY, low.size - mm.HIGH_MEMORY, self.ram, mm.HIGH_MEMORY)
        _, self._above_hole = self.change(self._ram_slots[:1], [below, above])

    def hide_low_end(self, size: int) -> None:
        """Take the last ``size`` bytes of low RAM off the bus, and put back what was hidden before.

        Precondition: The legacy hole is open, and there is more RAM above it.
        """
        if size == self._hidden:
            return
        self._hidden = size
        shown = self.layout.low_ram_end - mm.HIGH_MEMORY - size
        self._vm.set_memslot(self._above_hole, mm.HIGH_MEMORY, shown, self.ram, mm.HIGH_MEMORY)


class ShownPieces:
    """What a register of the chipset shows of memory, kept in line with it. One thread at a time."""

    def __init__(self, memory: SystemMemory) -> None:
        self._memory = memory
        self._slots: dict[Placement, int] = {}

    def show(self, wanted: Sequence[Placement]) -> None:
        """Show these pieces and no others; those that stay are not touched."""
        gone = [self._slots.pop(place) for place in list(self._slots) if place not in wanted]
        fresh = [place for place in wanted if place not in self._slots]
        self._slots.update(zip(fresh, self._memory.change(gone, fresh), strict=True))


class DeviceMemory:
    """`sublet.hw.DeviceRam`: host memory of a device, shown to the guest by memslots.

    Args:
        memory: Where its windows are mapped.
        size: Bytes, a multiple of 4 KiB.
    """

    def __init__(self, memory: SystemMemory, size: int) -> None:
        self._memory = memory
        self.block = RamBlock(size)
        self._mapping = mmap.mmap(self.block.fileno(), size)
        self._buffer = memoryview(self._mapping)

    @property
    def buffer(self) -> memoryview:
        """Its bytes."""
        return self._buffer

    def window(self, *, readonly: bool = False) -> MemoryWindow:
        """One more place to show it."""
        return MemoryWindow(self._memory, self.block, readonly=readonly)


class MemoryWindow:
    """`sublet.hw.RamWindow`: one place at which device memory shows, or none."""

    def __init__(self, memory: SystemMemory, block: RamBlock, *, readonly: bool) -> None:
        self._memory = memory
        self._block = block
        self._readonly = readonly
        self._slot: int | None = None

    def place(self, base: int, size: int, offset: int = 0) -> None:
        """Show ``size`` bytes from ``offset`` at ``base``; nowhere when something else is mapped there."""
        self.withdraw()
        if not self._memory.overlaps(base, size):
            self._slot = self._memory.map(Placement(base, size, self._block, offset, self._readonly))

    def withdraw(self) -> None:
        """Show it nowhere."""
        if self._slot is not None:
            self._memory.unmap(self._slot)
            self._slot = None
