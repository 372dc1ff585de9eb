"""A machine's RAM, and the memslots through which the guest sees it and its devices' memory."""

from __future__ import annotations

import mmap
import threading

from sublet.engine import RamBlock, Vm
from sublet.machine import memory_map as mm


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
        self._ram_slots = [self.map(r.gpa, r.size, self.ram, r.offset) for r in layout.ram]

    def map(
        self,
        gpa: int,
        size: int,
        block: RamBlock,
        offset: int = 0,
        *,
        readonly: bool = False,
        smm: bool = False,
    ) -> int:
        """Map a piece of ``block`` at ``gpa``; all in bytes, multiples of 4 KiB.

        With ``smm`` vCPUs in system-management mode find it there, in place of what all others do.

        Returns:
            The memslot, for `unmap`.
        """
        with self._lock:
            if self._free_slots:
                slot = self._free_slots.pop()
            else:
                slot = self._next_slot
                self._next_slot += 1
        self._vm.set_memslot(slot, gpa, size, block, offset, readonly=readonly, smm=smm)
        return slot

    def unmap(self, slot: int) -> None:
        """Take away what `map` made."""
        self._vm.remove_memslot(slot)
        with self._lock:
            self._free_slots.append(slot)

    def overlaps(self, gpa: int, size: int) -> bool:
        """Whether something is mapped in the range."""
        return any(
            gpa < start + length and start < gpa + size for _, start, length, _ in self._vm.memory.slots()
        )

    def open_legacy_hole(self) -> None:
        """Take the RAM from 640 KiB to 1 MiB off the bus: video memory, and what the chipset shadows."""
        low = self.layout.ram[0]
        self.unmap(self._ram_slots[0])
        self.map(0, mm.VGA_BASE, self.ram, 0)
        self._above_hole = self.map(mm.HIGH_MEMORY, low.size - mm.HIGH_MEMORY, self.ram, mm.HIGH_MEMORY)

    def hide_low_end(self, size: int) -> None:
        """Take the last ``size`` bytes of low RAM off the bus, and put back what was hidden before.

        Precondition: The legacy hole is open, and there is more RAM above it.
        """
        if size == self._hidden:
            return
        self._hidden = size
        shown = self.layout.low_ram_end - mm.HIGH_MEMORY - size
        self._vm.set_memslot(self._above_hole, mm.HIGH_MEMORY, shown, self.ram, mm.HIGH_MEMORY)


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
            self._slot = self._memory.map(base, size, self._block, offset, readonly=self._readonly)

    def withdraw(self) -> None:
        """Show it nowhere."""
        if self._slot is not None:
            self._memory.unmap(self._slot)
            self._slot = None
