"""The memory window at A0000h: accesses of the CPU, and the modes in which it needs no exit at all.

Where the addressing is plain, the guest is shown RAM instead: in chained modes video memory itself, in
text modes a copy of planes 0 and 1, interleaved as the CPU sees them, which is put back into the planes
before anybody else looks. That happens at the first access after the mode was set, so that a mode which
nobody draws in costs nothing.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from sublet.devices.vga.dispi import Dispi
from sublet.devices.vga.planes import Planes, is_chained, is_odd_even
from sublet.devices.vga.registers import (
    GRAPHICS_MISC,
    GRAPHICS_READ_MAP,
    SEQUENCER_MAP_MASK,
    VgaRegisters,
)
from sublet.hw import DeviceRam

WINDOW_BASE = 0xA0000
WINDOW_SIZE = 0x20000
TEXT_RAM_SIZE = 0x8000
"""Bytes of RAM that stand in for text memory; the whole of B0000h or B8000h."""

_APERTURES = ((0x0_0000, 0x2_0000), (0x0_0000, 0x1_0000), (0x1_0000, 0x8000), (0x1_8000, 0x8000))
"""Offset and size of the part of the window that decodes, by bits 3:2 of the graphics controller's misc."""
_BANKED = 1
"""The choice of `_APERTURES` that the bank register moves through video memory."""


@dataclass(frozen=True)
class _Direct:
    """RAM in place of exits: which, and where. ``base`` and ``size`` as in `_APERTURES`."""

    text: bool
    base: int
    size: int
    offset: int


class MemoryWindow:
    """128 KiB at A0000h (`hw.MmioDevice`).

    Callers on the guest's side hold no lock; ``lock`` is the adapter's.

    Args:
        video_ram: Video memory.
        text_ram: `TEXT_RAM_SIZE` bytes for the copy in text modes.
        registers: How the CPU's accesses are meant.
        dispi: The bank.
        lock: Guards all of the adapter.
    """

    def __init__(
        self,
        video_ram: DeviceRam,
        text_ram: DeviceRam,
        registers: VgaRegisters,
        dispi: Dispi,
        lock: threading.RLock,
    ) -> None:
        self._video = video_ram.buffer
        self._text = text_ram.buffer
        self._video_window = video_ram.window()
        self._text_window = text_ram.window()
        self._registers = registers
        self._dispi = dispi
        self._lock = lock
        self._planes = Planes(video_ram.buffer, registers)
        self._direct: _Direct | None = None

    # Guest side

    def mmio_read(self, offset: int, size: int) -> int:
        """Read ``size`` bytes, one after the other."""
        with self._lock:
            self._show_directly()
            return sum(self._read_byte(offset + i) << 8 * i for i in range(size))

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Write ``size`` bytes, one after the other."""
        with self._lock:
            self._show_directly()
            for i in range(size):
                self._write_byte(offset + i, value >> 8 * i & 0xFF)

    def _read_byte(self, offset: int) -> int:
        at = self._within_aperture(offset)
        if at is None:
            return 0xFF
        if self._direct is not None and self._direct.text:
            return self._text[at]
        return self._planes.read(at)

    def _write_byte(self, offset: int, value: int) -> None:
        at = self._within_aperture(offset)
        if at is None:
            return
        if self._direct is not None and self._direct.text:
            self._text[at] = value
        else:
            self._planes.write(at, value)

    def _within_aperture(self, offset: int) -> int | None:
        """Offset for the planes; None where the window does not decode."""
        choice = self._registers.graphics[GRAPHICS_MISC] >> 2 & 3
        base, size = _APERTURES[choice]
        if not base <= offset < base + size:
            return None
        return offset - base + (self._dispi.bank_offset if choice == _BANKED else 0)

    # RAM in place of exits

    def _show_directly(self) -> None:
        """Put RAM where the next accesses go, if their addressing is plain."""
        if self._direct is not None:
            return
        direct = self._plain_addressing()
        if direct is None:
            return
        self._direct = direct
        if direct.text:
            self._text[0::2] = self._video[0 : 2 * TEXT_RAM_SIZE : 4]
            self._text[1::2] = self._video[1 : 2 * TEXT_RAM_SIZE : 4]
        window = self._text_window if direct.text else self._video_window
        window.place(WINDOW_BASE + direct.base, direct.size, direct.offset)

    def _plain_addressing(self) -> _Direct | None:
        registers = self._registers
        choice = registers.graphics[GRAPHICS_MISC] >> 2 & 3
        base, size = _APERTURES[choice]
        mask = registers.sequencer[SEQUENCER_MAP_MASK]
        if is_chained(registers):
            offset = self._dispi.bank_offset if choice == _BANKED else 0
            fits = mask == 0xF and offset + size <= len(self._video)
            return _Direct(False, base, size, offset) if fits else None
        first_planes = mask & 3 == 3 and not registers.graphics[GRAPHICS_READ_MAP] & 2
        if is_odd_even(registers) and first_planes and size == TEXT_RAM_SIZE:
            return _Direct(True, base, size, 0)
        return None

    def registers_changed(self) -> None:
        """Take the RAM away if it would show something else now."""
        if self._direct is not None and self._direct != self._plain_addressing():
            self._withdraw()

    def _withdraw(self) -> None:
        self.settle()
        self._direct = None
        self._text_window.withdraw()
        self._video_window.withdraw()

    def settle(self) -> None:
        """Bring video memory up to date with what the guest wrote as text. Callers hold the lock."""
        if self._direct is not None and self._direct.text:
            self._video[0 : 2 * TEXT_RAM_SIZE : 4] = self._text[0::2]
            self._video[1 : 2 * TEXT_RAM_SIZE : 4] = self._text[1::2]

    # Lifecycle

    def reset(self) -> None:
        """Every access exits again; memory keeps its content, as DRAM would."""
        self._withdraw()
        self._planes.reset()

    def save_state(self) -> dict[str, Any]:
        """The latches; video memory is the adapter's."""
        return self._planes.save_state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``; video memory has been restored."""
        self._direct = None
        self._text_window.withdraw()
        self._video_window.withdraw()
        self._planes.load_state(state)
