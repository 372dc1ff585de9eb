"""Base of PCI functions: identity, BARs, command register and the INTx pin.

Reference: PCI Local Bus 3.0 §6.2 "Configuration Space Functions".
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sublet.devices.pci import config_space as cs
from sublet.hw import DeviceRam, MmioDevice, PioDevice, RamWindow


class BarKind(enum.Enum):
    """Which address space a BAR decodes, as its low bits say."""

    IO = 1
    MEMORY32 = 0
    MEMORY64 = 4
    ROM = 2
    """The expansion ROM's register: 32-bit memory with an enable bit of its own."""


ROM_INDEX = 6
"""What `Bar.index` is for the expansion ROM, which has a register apart from the six BARs."""
_ROM_ENABLE = 1
_FLAG_BITS = {BarKind.IO: 3, BarKind.MEMORY32: 15, BarKind.MEMORY64: 15, BarKind.ROM: 0x7FF}


@dataclass(frozen=True)
class Bar:
    """One base address register.

    ``size`` is a power of two, at least 16 (memory), 4 (I/O) or 4096 (RAM). ``handler`` answers accesses
    with offsets relative to the BAR, or is RAM that shows there. A 64-bit BAR takes ``index`` and
    ``index + 1``.
    """

    index: int
    kind: BarKind
    size: int
    handler: MmioDevice | PioDevice | RamWindow

    @property
    def offset(self) -> int:
        """Offset of the register in configuration space."""
        return cs.EXPANSION_ROM if self.kind is BarKind.ROM else cs.BAR0 + 4 * self.index

    @property
    def width(self) -> int:
        """Bytes of the register: 4 or 8."""
        return 8 if self.kind is BarKind.MEMORY64 else 4


class PciDevice:
    """A single-function type 0 device. Subclasses add BARs and capabilities in their constructors.

    ``config`` is guarded by the host's lock once the device is plugged in; ``set_intx`` may be called
    from any thread. The host sets ``connect_intx`` and ``on_decode_change``.

    Args:
        vendor_id: 16 bits.
        device_id: 16 bits.
        class_code: 24 bits: base class, subclass, programming interface.
        interrupt_pin: 0 for none, 1 to 4 for INTA to INTD.
    """

    def __init__(
        self,
        *,
        vendor_id: int,
        device_id: int,
        class_code: int,
        revision: int = 0,
        subsystem_vendor_id: int = 0,
        subsystem_id: int = 0,
        interrupt_pin: int = 0,
    ) -> None:
        self.config = cs.ConfigSpace()
        self.bars: list[Bar] = []
        self._intx_lock = threading.Lock()
        self._intx_wanted = False
        self._intx_sink: Callable[[bool], None] = _drop_level
        config = self.config
        config.define(cs.VENDOR_ID, 2, vendor_id)
        config.define(cs.DEVICE_ID, 2, device_id)
        config.define(cs.COMMAND, 2, 0, cs.COMMAND_WRITABLE)
        config.define(cs.REVISION_ID, 1, revision)
        config.define(cs.CLASS_CODE, 3, class_code)
        config.define(cs.SUBSYSTEM_VENDOR_ID, 2, subsystem_vendor_id)
        config.define(cs.SUBSYSTEM_ID, 2, subsystem_id)
        config.define(cs.INTERRUPT_LINE, 1, 0, 0xFF)
        config.define(cs.INTERRUPT_PIN, 1, interrupt_pin)

    @property
    def interrupt_pin(self) -> int:
        """0 for none, 1 to 4 for INTA to INTD."""
        return self.config.get(cs.INTERRUPT_PIN, 1)

    @property
    def bus_master(self) -> bool:
        """Whether the guest lets the device write to memory, MSI included."""
        return bool(self.config.get(cs.COMMAND, 2) & cs.COMMAND_MASTER)

    def add_bar(self, bar: Bar) -> None:
        """Define a BAR; its size is what a guest's all-ones write reads back.

        Quirk: an I/O BAR keeps all 32 bits though ports have 16: SeaBIOS takes the size from all of them.
        """
        address_mask = ~(bar.size - 1) & ((1 << (8 * bar.width)) - 1)
        fixed, writable = bar.kind.value, 0
        if bar.kind is BarKind.ROM:
            fixed, writable = 0, _ROM_ENABLE
        self.config.define(bar.offset, bar.width, fixed, address_mask | writable)
        self.bars.append(bar)

    def add_rom(self, content: bytes, ram: DeviceRam) -> None:
        """Give the function an expansion ROM (PCI 3.0 §6.2.5.2 "Expansion ROM Base Address Register").

        Args:
            content: The ROM's image.
            ram: Holds it; a power of two in size, at least 4096 bytes and the image's length.
        """
        ram.buffer[: len(content)] = content
        self.add_bar(Bar(ROM_INDEX, BarKind.ROM, len(ram.buffer), ram.window(readonly=True)))

    def bar_base(self, bar: Bar) -> int:
        """The base that the BAR holds now."""
        return self.config.get(bar.offset, bar.width) & ~_FLAG_BITS[bar.kind]

    def set_bar_base(self, bar: Bar, base: int) -> None:
        """Assign a base, as firmware would; a multiple of the BAR's size."""
        flags = 0 if bar.kind is BarKind.ROM else bar.kind.value
        self.config.set(bar.offset, bar.width, base | flags)

    def decodes(self, bar: Bar) -> bool:
        """Whether the command register enables the BAR's space, and a ROM's register the ROM."""
        if bar.kind is BarKind.ROM and not self.config.get(bar.offset, 4) & _ROM_ENABLE:
            return False
        enable = cs.COMMAND_IO if bar.kind is BarKind.IO else cs.COMMAND_MEMORY
        return bool(self.config.get(cs.COMMAND, 2) & enable)

    def config_read(self, offset: int, size: int) -> int:
        """A guest's configuration read; called with the host's lock held."""
        return self.config.read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """A guest's configuration write; called with the host's lock held."""
        self.config.write(offset, size, value)
        if offset < cs.STATUS and offset + size > cs.COMMAND:
            self._drive_intx()

    def connect_intx(self, sink: Callable[[bool], None]) -> None:
        """Wire the device's pin; the host calls this once."""
        self._intx_sink = sink

    def set_intx(self, level: bool) -> None:
        """Assert or release the pin, unless the command register disables it. Any thread."""
        with self._intx_lock:
            self._intx_wanted = level
        self._drive_intx()

    def _drive_intx(self) -> None:
        with self._intx_lock:
            status = self.config.get(cs.STATUS, 2) & ~cs.STATUS_INTERRUPT
            self.config.set(cs.STATUS, 2, status | (cs.STATUS_INTERRUPT if self._intx_wanted else 0))
            disabled = self.config.get(cs.COMMAND, 2) & cs.COMMAND_INTX_DISABLE
            self._intx_sink(self._intx_wanted and not disabled)

    def reset(self) -> None:
        """Power-on state: nothing decodes, no interrupt; the host assigns the BARs again."""
        self.config.set(cs.COMMAND, 2, 0)
        self.config.set(cs.INTERRUPT_LINE, 1, 0)
        self.set_intx(False)

    def save_state(self) -> dict[str, Any]:
        """Configuration space and the pin."""
        return {"config": self.config.save(), "intx": self._intx_wanted}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``; the host remaps the BARs afterwards (``PciHost.remap``)."""
        self.config.restore(state["config"])
        self.set_intx(state["intx"])


def _drop_level(level: bool) -> None:
    """The pin of a device that is not plugged in."""
