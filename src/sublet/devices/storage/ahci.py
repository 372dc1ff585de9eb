"""The AHCI function of an ICH9: up to six Serial ATA ports.

Deviation: no hot-plug, no power management of links, no port multipliers, no command completion coalescing.

Reference: AHCI 1.3.1 §3 "HBA memory registers"; Intel ICH9 (316972) chapter 15.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

from sublet.devices.pci import Bar, BarKind, PciDevice
from sublet.devices.pci.msi import Msi
from sublet.devices.storage.ahci_port import PORT_SIZE, SLOTS, AhciPort
from sublet.devices.storage.taskfile import Drive
from sublet.hw import Executor, GuestMemory, MsiSink

PORTS: Final = 6
BAR_SIZE: Final = 0x1000
_FIRST_PORT: Final = 0x100

_ICH9_AHCI: Final = 0x2922
_INTEL: Final = 0x8086
_CLASS: Final = 0x010601
_SATA_CAPABILITY: Final = 0x12

_CAP, _GHC, _IS, _PI, _VS = 0x00, 0x04, 0x08, 0x0C, 0x10
_CAPABILITIES: Final = 1 << 31 | 1 << 30 | 2 << 20 | 1 << 18 | (SLOTS - 1) << 8 | PORTS - 1
"""64-bit addresses, queued commands, 3 Gb/s, AHCI only, slots, ports."""
_VERSION_1_3: Final = 0x0001_0300
_GHC_RESET, _GHC_INTERRUPTS, _GHC_AHCI = 1 << 0, 1 << 1, 1 << 31


class Ich9Ahci(PciDevice):
    """An AHCI controller; the registers are BAR 5.

    ``_lock`` guards the global interrupt status; a port's lock may be held when it is taken.

    Args:
        drives: At most six; None where a port is empty.
        memory: For command lists and data.
        msi: Where messages go.
        executor: Where commands run: each port's one after the other, so on a thread each none waits.
    """

    def __init__(
        self, drives: Sequence[Drive | None], memory: GuestMemory, msi: MsiSink, executor: Executor
    ) -> None:
        super().__init__(
            vendor_id=_INTEL, device_id=_ICH9_AHCI, class_code=_CLASS, revision=2, interrupt_pin=1
        )
        self._lock = threading.Lock()
        self._pending = 0
        self._interrupts = False
        places = [*drives, *[None] * PORTS][:PORTS]
        self.ports = tuple(AhciPort(drive, memory, executor, self._update) for drive in places)
        self.add_bar(Bar(5, BarKind.MEMORY32, BAR_SIZE, self))
        self._msi = Msi(self, msi)
        self.config.add_capability(_SATA_CAPABILITY, bytes((0x10, 0, 0x48, 0, 0, 0)))

    def _update(self) -> None:
        """A port's interrupt status has changed: keep the global one and the pin in line."""
        with self._lock:
            before = self._pending
            for index, port in enumerate(self.ports):
                self._pending |= int(port.interrupting) << index
            fresh = self._pending & ~before
            self._drive(bool(fresh))

    def _drive(self, fresh: bool) -> None:
        level = self._interrupts and bool(self._pending)
        if self._msi.enabled:
            self.set_intx(False)
            if level and fresh:
                self._msi.notify()
        else:
            self.set_intx(level)

    # Registers

    def mmio_read(self, offset: int, size: int) -> int:
        """Registers of 32 bits; narrower and wider accesses get their part of them."""
        low = self._read(offset & ~3)
        if size == 8:
            low |= self._read((offset & ~3) + 4) << 32
        return low >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def _read(self, offset: int) -> int:
        if offset >= _FIRST_PORT:
            index, register = divmod(offset - _FIRST_PORT, PORT_SIZE)
            return self.ports[index].read(register) if index < PORTS else 0
        return {
            _CAP: _CAPABILITIES,
            _GHC: _GHC_AHCI | (_GHC_INTERRUPTS if self._interrupts else 0),
            _IS: self._pending,
            _PI: (1 << PORTS) - 1,
            _VS: _VERSION_1_3,
        }.get(offset, 0)

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Aligned writes of 32 or 64 bits; others are undefined and ignored."""
        if offset & 3 or size < 4:
            return
        for part in range(size // 4):
            self._write(offset + 4 * part, value >> 32 * part & 0xFFFF_FFFF)

    def _write(self, offset: int, value: int) -> None:
        if offset >= _FIRST_PORT:
            index, register = divmod(offset - _FIRST_PORT, PORT_SIZE)
            if index < PORTS:
                self.ports[index].write(register, value)
        elif offset == _GHC:
            self._write_global_control(value)
        elif offset == _IS:
            with self._lock:
                self._pending &= ~value
            self._update()

    def _write_global_control(self, value: int) -> None:
        if value & _GHC_RESET:
            self._reset_ports()
            return
        with self._lock:
            before, self._interrupts = self._interrupts, bool(value & _GHC_INTERRUPTS)
            self._drive(self._interrupts and not before)

    # Lifecycle

    def _reset_ports(self) -> None:
        for port in self.ports:
            port.reset()
        with self._lock:
            self._pending = 0
            self._interrupts = False
            self._drive(False)

    def reset(self) -> None:
        """Power-on state, after the commands in flight."""
        super().reset()
        self._msi.reset()
        self._reset_ports()

    def save_state(self) -> dict[str, Any]:
        """Configuration space, global registers and ports; the commands given are finished before."""
        ports = [port.save_state() for port in self.ports]
        return super().save_state() | {
            "ports": ports,
            "pending": self._pending,
            "interrupts": self._interrupts,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state`` on a function with the same drives."""
        for port, saved in zip(self.ports, state["ports"], strict=True):
            port.load_state(saved)
        with self._lock:
            self._pending, self._interrupts = state["pending"], state["interrupts"]
        super().load_state(state)

    def close(self) -> None:
        """Flush and close the media."""
        for port in self.ports:
            port.close()
