"""System-management mode on the board: SMRAM by the chipset's registers, and SMIs to the vCPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sublet.devices.platform.smi_features import SmiFeatures
from sublet.devices.platform.smram import NO_SMRAM, Smram
from sublet.engine import Vm
from sublet.machine import memory_map as mm
from sublet.machine.memory import Placement, ShownPieces, SystemMemory
from sublet.machine.runloop import current_vcpu

_LOW_SIZE: Final = 0x20000
_HIGH_BASE: Final = 0xFEDA_0000
_MSI_ADDRESS: Final = 0xFEE0_0000
_DESTINATION_SHIFT: Final = 12
_SMI_DELIVERY: Final = 2 << 8


class SystemManagementRam:
    """Keeps memslots in line with the chipset's registers. Called with the PCI host's lock held.

    RAM that is SMRAM answers processors in the mode alone; all others find what lies beneath at A0000h, and
    nothing at TSEG.

    Args:
        memory: The machine's RAM, with its legacy hole open.
        vm: Told when every processor is to see SMRAM.
    """

    def __init__(self, memory: SystemMemory, vm: Vm) -> None:
        self._memory = memory
        self._vm = vm
        self._shown = NO_SMRAM
        self._pieces = ShownPieces(memory)

    def apply(self, wanted: Smram) -> None:
        """Show what the registers say."""
        self._pieces.show(self._places(wanted))
        self._memory.hide_low_end(self._tseg_size(wanted))
        if wanted.opened != self._shown.opened:
            self._vm.set_smm_open(wanted.opened)
        self._shown = wanted

    def _places(self, wanted: Smram) -> list[Placement]:
        places = []
        if wanted.low:
            places.append(self._place(mm.VGA_BASE, _LOW_SIZE, mm.VGA_BASE))
        if wanted.high:
            places.append(self._place(_HIGH_BASE, _LOW_SIZE, mm.VGA_BASE))
        size = self._tseg_size(wanted)
        if size:
            start = self._memory.layout.low_ram_end - size
            places.append(self._place(start, size, start))
        return places

    def _place(self, gpa: int, size: int, offset: int) -> Placement:
        return Placement(gpa, size, self._memory.ram, offset, smm=True)

    def _tseg_size(self, wanted: Smram) -> int:
        """Bytes of TSEG: none where RAM above 1 MiB has no room for it."""
        room = self._memory.layout.low_ram_end - mm.HIGH_MEMORY
        return wanted.tseg_size if wanted.tseg_size < room else 0


class SmiSource:
    """Raises SMIs for commands at the APM port.

    Args:
        vm: Its vCPUs are interrupted.
        cpus: How many.
        features: What the firmware has agreed on.
        takes_command: The chipset's part: whether a command is to raise one.
    """

    def __init__(self, vm: Vm, cpus: int, features: SmiFeatures, takes_command: Callable[[], bool]) -> None:
        self._vm = vm
        self._cpus = cpus
        self._features = features
        self._takes_command = takes_command

    def command(self, value: int) -> None:
        """A command was written: interrupt the vCPU that wrote it, or all if the firmware wants it so."""
        if not self._takes_command():
            return
        targets = range(self._cpus) if self._features.broadcast else (current_vcpu(),)
        for index in targets:
            self._vm.signal_msi(_MSI_ADDRESS | index << _DESTINATION_SHIFT, _SMI_DELIVERY)
