"""A machine's RAM, and the memslots through which the guest sees it and other host memory."""

from __future__ import annotations

from sublet.engine import RamBlock, Vm
from sublet.machine import memory_map as mm


class SystemMemory:
    """One block of host memory for all RAM, mapped as the address map says.

    Args:
        vm: Where to map it.
        layout: The address map.
    """

    def __init__(self, vm: Vm, layout: mm.MemoryMap) -> None:
        self.layout = layout
        self.ram = RamBlock(layout.ram_size)
        self._vm = vm
        self._next_slot = 0
        for region in layout.ram:
            self.map(region.gpa, region.size, self.ram, region.offset)

    def map(self, gpa: int, size: int, block: RamBlock, offset: int = 0, *, readonly: bool = False) -> int:
        """Map a piece of ``block`` at ``gpa``; all in bytes, multiples of 4 KiB.

        Returns:
            The memslot, for `unmap`.
        """
        slot = self._next_slot
        self._next_slot += 1
        self._vm.set_memslot(slot, gpa, size, block, offset, readonly=readonly)
        return slot

    def unmap(self, slot: int) -> None:
        """Take away what `map` made."""
        self._vm.remove_memslot(slot)
