"""Parallel NOR flash with Intel's command set, which UEFI firmware keeps its variables in.

Reference: Intel 28F320J3 StrataFlash datasheet (290667) §10 "Command definitions"; JEDEC JESD68 "Common
Flash Interface". Byte-wide, blocks of 4 KiB, no buffered writes: what OVMF's driver asks for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from sublet.hw import DeviceRam

BLOCK_SIZE: Final = 0x1000

_READ_ARRAY, _READ_STATUS, _CLEAR_STATUS, _READ_ID, _READ_CFI = 0xFF, 0x70, 0x50, 0x90, 0x98
_PROGRAM, _PROGRAM_ALTERNATE, _ERASE, _CONFIRM, _LOCK = 0x10, 0x40, 0x20, 0xD0, 0x60
_STATUS_READY: Final = 0x80
_STATUS_SEQUENCE_ERROR: Final = 0x30
_MANUFACTURER, _DEVICE = 0x89, 0x18


class Flash:
    """``hw.MmioDevice`` over the whole chip. While it shows its array, the guest reads it without exits.

    Args:
        ram: The array's content; the device keeps it.
        base: Where the chip shows, guest-physical.
        on_change: Called when the guest goes back to reading the array after it has changed it.
        takes_writes: Whether a write that comes now counts; others are lost. None: all count.
    """

    def __init__(
        self,
        ram: DeviceRam,
        base: int,
        on_change: Callable[[], None],
        takes_writes: Callable[[], bool] | None = None,
    ) -> None:
        self._takes_writes = takes_writes
        self._array = ram.buffer
        self._window = ram.window(readonly=True)
        self._base = base
        self._on_change = on_change
        self._changed = False
        self._lock = threading.Lock()
        self._command = _READ_ARRAY
        self._pending: int | None = None
        self._status = _STATUS_READY
        self._show_array()

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._array)

    def _show_array(self) -> None:
        self._command = _READ_ARRAY
        self._pending = None
        self._window.place(self._base, self.size)
        if self._changed:
            self._changed = False
            self._on_change()

    def mmio_read(self, offset: int, size: int) -> int:
        """The array, the status, or the chip's identity, by the last command."""
        with self._lock:
            if self._command == _READ_ARRAY:
                return int.from_bytes(self._array[offset : offset + size], "little")
            if self._command == _READ_ID:
                return _MANUFACTURER if offset & 1 == 0 else _DEVICE
            return self._status

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """A command, or the data of the one before."""
        if self._takes_writes is not None and not self._takes_writes():
            return
        with self._lock:
            if self._pending is None:
                self._begin(value & 0xFF)
            else:
                self._finish(self._pending, offset, size, value)

    def _begin(self, command: int) -> None:
        if command == _READ_ARRAY:
            self._show_array()
            return
        if self._command == _READ_ARRAY:
            self._window.withdraw()
        self._command = command
        if command in (_PROGRAM, _PROGRAM_ALTERNATE, _ERASE, _LOCK):
            self._pending = command
        elif command == _CLEAR_STATUS:
            # Quirk: OVMF takes for flash what now reads as zero, without the ready bit, as QEMU's chip does.
            self._status = 0
            self._show_array()

    def _finish(self, command: int, offset: int, size: int, value: int) -> None:
        self._pending = None
        self._command = _READ_STATUS
        self._status |= _STATUS_READY
        if command in (_PROGRAM, _PROGRAM_ALTERNATE):
            self._program(offset, value.to_bytes(size, "little"))
        elif command == _ERASE and value & 0xFF == _CONFIRM:
            self._erase(offset & ~(BLOCK_SIZE - 1))
        elif command == _ERASE:
            self._status |= _STATUS_SEQUENCE_ERROR

    def _program(self, offset: int, data: bytes) -> None:
        """Programming only clears bits."""
        end = min(offset + len(data), self.size)
        for index in range(offset, end):
            self._array[index] &= data[index - offset]
        self._changed = True

    def _erase(self, start: int) -> None:
        self._array[start : start + BLOCK_SIZE] = b"\xff" * BLOCK_SIZE
        self._changed = True

    def reset(self) -> None:
        """Shows its array."""
        with self._lock:
            self._status = _STATUS_READY
            self._show_array()

    def save_state(self) -> dict[str, Any]:
        """Array and command state."""
        with self._lock:
            return {
                "array": bytes(self._array),
                "command": self._command,
                "pending": self._pending,
                "status": self._status,
            }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state`` on a chip of the same size."""
        with self._lock:
            self._array[:] = state["array"]
            self._status = state["status"]
            self._show_array()
            if state["command"] != _READ_ARRAY:
                self._window.withdraw()
                self._command, self._pending = state["command"], state["pending"]
