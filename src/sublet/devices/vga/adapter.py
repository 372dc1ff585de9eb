"""One VGA with a Bochs display interface: ports, memory window, video memory.

Reference: IBM VGA XGA Technical Reference (1992); Bochs "VBE Display Interface".
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sublet.devices.vga.dispi import Dispi
from sublet.devices.vga.registers import VgaRegisters
from sublet.devices.vga.window import MemoryWindow
from sublet.hw import Clock, DeviceRam, PioDevice

VIDEO_MEMORY_SIZE = 16 << 20
"""Bytes, unless the machine says otherwise."""
DISPI_PORT = 0x1CE
_DISPI_PORT_COUNT = 4
_REGISTER_PORTS = ((0x3B4, 2), (0x3BA, 1), (0x3C0, 16), (0x3D4, 2), (0x3DA, 1))


@dataclass(frozen=True)
class PortRange:
    """Ports that a device decodes."""

    first: int
    count: int
    device: PioDevice


class Vga:
    """The adapter. Any thread may call any method; ``lock`` guards everything in it.

    Args:
        video_ram: Video memory; a power of two, at least 256 KiB.
        text_ram: 32 KiB that stand in for text memory (`sublet.devices.vga.window`).
        clock: Moves the beam.
    """

    def __init__(self, video_ram: DeviceRam, text_ram: DeviceRam, clock: Clock) -> None:
        self.lock = threading.RLock()
        self.memory = video_ram.buffer
        """Video memory: word ``n`` holds byte ``n`` of the four planes."""
        self.registers = VgaRegisters(clock, self._memory_changed)
        self.dispi = Dispi(len(self.memory), self._begin_linear_mode, self._dispi_changed)
        self.window = MemoryWindow(video_ram, text_ram, self.registers, self.dispi, self.lock)

    def ports(self) -> list[PortRange]:
        """What to put on the port bus."""
        ranges = [PortRange(first, count, _VgaPorts(self, first)) for first, count in _REGISTER_PORTS]
        return [*ranges, PortRange(DISPI_PORT, _DISPI_PORT_COUNT, _DispiPorts(self))]

    @contextmanager
    def settled(self) -> Iterator[Vga]:
        """Hold the adapter still, with video memory up to date, to draw from it."""
        with self.lock:
            self.window.settle()
            yield self

    def _memory_changed(self) -> None:
        self.window.registers_changed()

    def _dispi_changed(self) -> None:
        self.registers.palette.wide = self.dispi.wide_palette
        self.window.registers_changed()

    def _begin_linear_mode(self, clear: bool) -> None:
        mode = self.dispi.mode()
        self.registers.prepare_linear(mode.bits)
        if clear:
            planes = 4 if mode.bits == 4 else 1
            size = min(mode.height * mode.pitch * planes, len(self.memory))
            self.memory[:size] = bytes(size)

    # Lifecycle

    def reset(self) -> None:
        """Power-on state; video memory keeps its content, as DRAM would."""
        with self.lock:
            self.window.reset()
            self.dispi.reset()
            self.registers.reset()

    def save_state(self) -> dict[str, Any]:
        """Registers and video memory."""
        with self.settled():
            return {
                "registers": self.registers.save_state(),
                "dispi": self.dispi.save_state(),
                "window": self.window.save_state(),
                "memory": bytes(self.memory),
            }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state`` on an adapter with as much memory."""
        with self.lock:
            self.window.load_state(state["window"])
            self.memory[:] = state["memory"]
            self.registers.load_state(state["registers"])
            self.dispi.load_state(state["dispi"])


class _VgaPorts:
    """Ports of the register files; an access of several bytes is one to each port, lowest first."""

    def __init__(self, vga: Vga, first: int) -> None:
        self._lock = vga.lock
        self._registers = vga.registers
        self._first = first

    def pio_read(self, offset: int, size: int) -> int:
        """Read registers."""
        port = self._first + offset
        with self._lock:
            return sum(self._registers.read(port + i) << 8 * i for i in range(size))

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Write registers; 16 bits write an index and its data at once."""
        port = self._first + offset
        with self._lock:
            for i in range(size):
                self._registers.write(port + i, value >> 8 * i & 0xFF)


class _DispiPorts:
    """Index at 1CEh, data at 1CFh and, for machines that cannot reach an odd port, at 1D0h."""

    def __init__(self, vga: Vga) -> None:
        self._lock = vga.lock
        self._dispi = vga.dispi

    def pio_read(self, offset: int, size: int) -> int:
        """Read a register's low ``size`` bytes."""
        with self._lock:
            value = self._dispi.read_index() if offset == 0 else self._dispi.read_data()
        return value & (1 << 8 * size) - 1

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Write a register."""
        with self._lock:
            if offset == 0:
                self._dispi.write_index(value)
            else:
                self._dispi.write_data(value)
