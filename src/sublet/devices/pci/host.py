"""The PCI host bridge: bus 0, both ways into configuration space, and where BARs decode.

Reference: PCI Local Bus 3.0 §3.2.2.3.2 "Software Generation of Configuration Transactions";
PCI Firmware 3.3 §4.1 "MCFG Table Description".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from sublet.devices.pci import config_space as cs
from sublet.devices.pci.device import Bar, BarKind, PciDevice
from sublet.hw import AddressSpace, MmioDevice, PioDevice, RamWindow

CONFIG_PORT = 0xCF8
CONFIG_PORT_COUNT = 8
RESET_OFFSET = 0xCF9 - CONFIG_PORT
SLOT_COUNT = 32
FUNCTION_COUNT = 8
ADDRESS_ENABLE = 1 << 31

_HOST_BRIDGE_IDS = {"vendor_id": 0x1B36, "device_id": 0x0008, "class_code": 0x060000}


@dataclass(frozen=True)
class Window:
    """A half-open range of addresses or ports that the bridge forwards to the bus."""

    base: int
    size: int

    @property
    def end(self) -> int:
        """First address after the window."""
        return self.base + self.size

    def contains(self, base: int, size: int) -> bool:
        """Whether a range lies wholly inside."""
        return self.base <= base and base + size <= self.end


@dataclass(frozen=True)
class _Mapping:
    """One BAR as the address space has it now."""

    bar: Bar
    base: int

    def overlaps(self, other: _Mapping) -> bool:
        same_space = (self.bar.kind is BarKind.IO) == (other.bar.kind is BarKind.IO)
        ends_before = self.base + self.bar.size <= other.base
        starts_after = other.base + other.bar.size <= self.base
        return same_space and not ends_before and not starts_after


class PinRouter(Protocol):
    """Where interrupt pins lead: `IntxRouter`, or a chipset's."""

    def pin(self, slot: int, pin: int) -> Callable[[bool], None]: ...


class PciHost:
    """Bus 0 with 32 slots of up to 8 functions; slot 0 is the bridge itself.

    ``_lock`` guards every configuration space and the BAR mappings. Bad input, by design: a BAR that is
    disabled, outside the windows, or over another device's BAR does not decode (reads of that range are
    answered as by an empty bus); which of two overlapping BARs decodes: the one mapped first.

    Args:
        bus: Where BARs are mapped.
        router: Where the interrupt pins lead.
        memory32: Window below 4 GiB.
        memory64: Window above 4 GiB.
        io: Port window.
        bridge: The device in slot 0; None: one that no driver knows.
    """

    def __init__(
        self,
        bus: AddressSpace,
        router: PinRouter,
        *,
        memory32: Window,
        memory64: Window,
        io: Window,
        bridge: PciDevice | None = None,
    ) -> None:
        self._bus = bus
        self._router = router
        self._windows = {
            BarKind.MEMORY32: memory32,
            BarKind.MEMORY64: memory64,
            BarKind.IO: io,
            BarKind.ROM: memory32,
        }
        self._memory_windows = (memory32, memory64)
        self._lock = threading.RLock()
        self._devices: dict[tuple[int, int], PciDevice] = {}
        self._mappings: list[_Mapping] = []
        self._address = 0
        self.plug(0, bridge or PciDevice(**_HOST_BRIDGE_IDS))

    # Wiring

    @property
    def devices(self) -> dict[tuple[int, int], PciDevice]:
        """The devices by slot and function, the bridge at (0, 0) included."""
        return dict(self._devices)

    def plug(self, slot: int, device: PciDevice, function: int = 0) -> None:
        """Put a function into a slot, 0 to 31; call ``assign_bars`` when all are in, if nothing else does.

        Function 0 of a slot comes first; it tells the guest that there are more.
        """
        place = (slot, function)
        if not (0 <= slot < SLOT_COUNT and 0 <= function < FUNCTION_COUNT) or place in self._devices:
            raise ValueError(f"PCI slot {slot} function {function} does not exist or is taken")
        self._devices[place] = device
        if function:
            self._devices[slot, 0].config.set(cs.HEADER_TYPE, 1, cs.HEADER_MULTIFUNCTION)
        if device.interrupt_pin:
            device.connect_intx(self._router.pin(slot, device.interrupt_pin - 1))

    def assign_bars(self) -> None:
        """Give every BAR a base in its window, largest first, as firmware does; decoding stays off."""
        bars = [(bar, device) for device in self._devices.values() for bar in device.bars]
        bars.sort(key=lambda item: item[0].size, reverse=True)
        next_base = {kind: window.base for kind, window in self._windows.items()}
        with self._lock:
            for bar, device in bars:
                space = BarKind.MEMORY32 if bar.kind is BarKind.ROM else bar.kind
                base = (next_base[space] + bar.size - 1) & ~(bar.size - 1)
                if not self._windows[space].contains(base, bar.size):
                    raise ValueError(f"no room for a BAR of {bar.size:#x} bytes ({bar.kind.name})")
                device.set_bar_base(bar, base)
                next_base[space] = base + bar.size
            self.remap()

    def remap(self) -> None:
        """Bring the address space in line with what the BARs and command registers say."""
        with self._lock:
            wanted = list(self._wanted_mappings())
            for mapping in [m for m in self._mappings if m not in wanted]:
                self._mappings.remove(mapping)
                self._unmap(mapping)
            for mapping in wanted:
                if mapping not in self._mappings and not any(map(mapping.overlaps, self._mappings)):
                    self._mappings.append(mapping)
                    self._map(mapping)

    def _wanted_mappings(self) -> Iterable[_Mapping]:
        for device in self._devices.values():
            for bar in device.bars:
                base = device.bar_base(bar)
                if device.decodes(bar) and self._forwards(bar, base):
                    yield _Mapping(bar, base)

    def _forwards(self, bar: Bar, base: int) -> bool:
        if bar.kind is BarKind.IO:
            return self._windows[BarKind.IO].contains(base, bar.size)
        return any(window.contains(base, bar.size) for window in self._memory_windows)

    def _map(self, mapping: _Mapping) -> None:
        bar = mapping.bar
        if isinstance(bar.handler, RamWindow):
            bar.handler.place(mapping.base, bar.size)
        elif bar.kind is BarKind.IO:
            self._bus.map_pio(mapping.base, bar.size, cast(PioDevice, bar.handler))
        else:
            self._bus.map_mmio(mapping.base, bar.size, cast(MmioDevice, bar.handler))

    def _unmap(self, mapping: _Mapping) -> None:
        bar = mapping.bar
        if isinstance(bar.handler, RamWindow):
            bar.handler.withdraw()
        elif bar.kind is BarKind.IO:
            self._bus.unmap_pio(mapping.base, bar.size, cast(PioDevice, bar.handler))
        else:
            self._bus.unmap_mmio(mapping.base, bar.size, cast(MmioDevice, bar.handler))

    # Guest side

    def config_read(self, bus: int, slot: int, function: int, offset: int, size: int) -> int:
        """A configuration read; an absent function reads as all ones."""
        device = self._devices.get((slot, function))
        if bus or device is None:
            return (1 << (8 * size)) - 1
        with self._lock:
            return device.config_read(offset, size)

    def config_write(self, bus: int, slot: int, function: int, offset: int, size: int, value: int) -> None:
        """A configuration write; to an absent function it is dropped."""
        device = self._devices.get((slot, function))
        if bus or device is None:
            return
        with self._lock:
            device.config_write(offset, size, value)
            if _touches_decoding(offset, size):
                self.remap()

    @property
    def config_address(self) -> int:
        """The CF8 register: enable in bit 31, then bus, slot, function, register."""
        return self._address

    @config_address.setter
    def config_address(self, value: int) -> None:
        self._address = value & 0x80FF_FFFC

    # Lifecycle

    def reset(self) -> None:
        """Reset every device and assign the BARs afresh."""
        with self._lock:
            self._address = 0
            for device in self._devices.values():
                device.reset()
            self.assign_bars()

    def save_state(self) -> dict[str, Any]:
        """The bridge and every device, by slot and function. The machine is paused."""
        slots = {_place(*place): device.save_state() for place, device in self._devices.items()}
        return {"address": self._address, "slots": slots}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state`` on a host with the same devices in the same slots."""
        with self._lock:
            self._address = state["address"]
            for place, device in self._devices.items():
                device.load_state(state["slots"][_place(*place)])
            self.remap()


def _place(slot: int, function: int) -> str:
    """How saved state names a function."""
    return f"{slot:02x}.{function}"


def _touches_decoding(offset: int, size: int) -> bool:
    return any(
        offset < end and offset + size > start
        for start, end in (
            (cs.COMMAND, cs.STATUS),
            (cs.BAR0, cs.BAR0 + 24),
            (cs.EXPANSION_ROM, cs.EXPANSION_ROM + 4),
        )
    )


class PciEcam:
    """Memory-mapped configuration space: 1 MiB a bus, 4 KiB a function."""

    def __init__(self, host: PciHost) -> None:
        self._host = host

    def mmio_read(self, offset: int, size: int) -> int:
        """Read configuration space."""
        bus, slot, function = offset >> 20, offset >> 15 & 31, offset >> 12 & 7
        return self._host.config_read(bus, slot, function, offset & 0xFFF, size)

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Write configuration space."""
        bus, slot, function = offset >> 20, offset >> 15 & 31, offset >> 12 & 7
        self._host.config_write(bus, slot, function, offset & 0xFFF, size, value)


class PciConfigPorts:
    """Ports 0xcf8 (address) and 0xcfc (data), eight in all; a byte at 0xcf9 is the reset register."""

    def __init__(self, host: PciHost, reset_register: PioDevice) -> None:
        self._host = host
        self._reset_register = reset_register

    def pio_read(self, offset: int, size: int) -> int:
        """Read the address or, through it, configuration space."""
        if offset == RESET_OFFSET and size == 1:
            return self._reset_register.pio_read(0, size)
        address = self._host.config_address
        if offset < 4:
            return address >> (8 * offset) & ((1 << (8 * size)) - 1)
        if not address & ADDRESS_ENABLE:
            return (1 << (8 * size)) - 1
        return self._host.config_read(*_split_address(address, offset), size)

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Only a 32-bit write reaches the address register (PCI 3.0 §3.2.2.3.2)."""
        if offset == RESET_OFFSET and size == 1:
            self._reset_register.pio_write(0, size, value)
        elif offset < 4:
            if offset == 0 and size == 4:
                self._host.config_address = value
        elif self._host.config_address & ADDRESS_ENABLE:
            self._host.config_write(*_split_address(self._host.config_address, offset), size, value)


def _split_address(address: int, port_offset: int) -> tuple[int, int, int, int]:
    """Bus, slot, function and register that a data port access means."""
    register = (address & 0xFC) + (port_offset & 3)
    return address >> 16 & 0xFF, address >> 11 & 31, address >> 8 & 7, register
