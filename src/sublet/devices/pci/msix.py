"""MSI-X: the capability, the vector table and the pending-bit array, which live in one 4 KiB BAR.

Reference: PCI Local Bus 3.0 §6.8.2 "MSI-X Capability and Table Structures".
"""

from __future__ import annotations

import threading
from typing import Any

from sublet.devices.pci.device import Bar, BarKind, PciDevice
from sublet.hw import MsiSink

CAPABILITY_ID = 0x11
BAR_SIZE = 0x1000
PBA_OFFSET = 0x800
ENTRY_SIZE = 16
MAX_VECTORS = PBA_OFFSET // ENTRY_SIZE
CONTROL_ENABLE = 1 << 15
CONTROL_MASK_ALL = 1 << 14
ENTRY_MASKED = 1


class MsixTable:
    """Vectors of one device. Any thread may ``notify``.

    Lock order: the host's lock, then ``_lock``, then what the sink takes.

    Args:
        device: Gets the capability and the BAR added.
        bar_index: Which BAR.
        vectors: 1 to 128.
        msi: Receives the messages.
    """

    def __init__(self, device: PciDevice, bar_index: int, vectors: int, msi: MsiSink) -> None:
        if not 1 <= vectors <= MAX_VECTORS:
            raise ValueError(f"{vectors} MSI-X vectors; 1 to {MAX_VECTORS} fit the table")
        self.vectors = vectors
        self._device = device
        self._msi = msi
        self._lock = threading.Lock()
        self._table = bytearray(ENTRY_SIZE * vectors)
        self._pending = 0
        self._control = 0
        device.add_bar(Bar(bar_index, BarKind.MEMORY32, BAR_SIZE, self))
        body = (vectors - 1).to_bytes(2, "little")
        body += bar_index.to_bytes(4, "little") + (PBA_OFFSET | bar_index).to_bytes(4, "little")
        self._capability = device.config.add_capability(CAPABILITY_ID, body, b"\x00\xc0")
        self._mask_all_entries()

    def _mask_all_entries(self) -> None:
        for vector in range(self.vectors):
            self._table[ENTRY_SIZE * vector : ENTRY_SIZE * (vector + 1)] = bytes(12) + b"\x01\0\0\0"

    @property
    def enabled(self) -> bool:
        """Whether the guest uses MSI-X in place of INTx."""
        return bool(self._control & CONTROL_ENABLE)

    def config_written(self) -> None:
        """Look at the control register again; the device calls this after configuration writes."""
        control = self._device.config.get(self._capability + 2, 2)
        if control == self._control:
            return
        with self._lock:
            self._control = control
            self._deliver_pending()

    def notify(self, vector: int) -> None:
        """Send a vector's message, or remember it while it is masked. Unknown vectors are dropped."""
        if not 0 <= vector < self.vectors:
            return
        with self._lock:
            if self._control & CONTROL_ENABLE:
                self._pending |= 1 << vector
                self._deliver(vector)

    def _deliver(self, vector: int) -> None:
        entry = int.from_bytes(self._table[ENTRY_SIZE * vector : ENTRY_SIZE * (vector + 1)], "little")
        masked = entry >> 96 & ENTRY_MASKED or self._control & CONTROL_MASK_ALL
        if masked or not self._device.bus_master:
            return
        self._pending &= ~(1 << vector)
        self._msi.signal(entry & 0xFFFF_FFFF_FFFF_FFFC, entry >> 64 & 0xFFFF_FFFF)

    def _deliver_pending(self) -> None:
        if not self._control & CONTROL_ENABLE:
            return
        for vector in range(self.vectors):
            if self._pending >> vector & 1:
                self._deliver(vector)

    def mmio_read(self, offset: int, size: int) -> int:
        """Table from 0, pending bits from ``PBA_OFFSET``; between them zeroes."""
        with self._lock:
            if offset < PBA_OFFSET:
                return int.from_bytes(self._table[offset : offset + size], "little")
            return self._pending >> (8 * (offset - PBA_OFFSET)) & ((1 << (8 * size)) - 1)

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Aligned 4- and 8-byte table writes; others are undefined and ignored, the PBA is read-only."""
        if size not in (4, 8) or offset % size or offset + size > len(self._table):
            return
        with self._lock:
            self._table[offset : offset + size] = value.to_bytes(size, "little")
            vector = offset // ENTRY_SIZE
            control = ENTRY_SIZE * vector + 12
            self._table[control + 1 : control + 4] = bytes(3)
            self._table[control] &= ENTRY_MASKED
            if self._pending >> vector & 1 and self._control & CONTROL_ENABLE:
                self._deliver(vector)

    def reset(self) -> None:
        """All vectors masked, none pending, MSI-X disabled."""
        with self._lock:
            self._control = 0
            self._pending = 0
            size_field = self._device.config.get(self._capability + 2, 2) & 0x7FF
            self._device.config.set(self._capability + 2, 2, size_field)
            self._mask_all_entries()

    def save_state(self) -> dict[str, Any]:
        """Table and pending bits; the control register is part of configuration space."""
        with self._lock:
            return {"table": bytes(self._table), "pending": self._pending}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``, after the device's configuration space has been restored."""
        with self._lock:
            self._table = bytearray(state["table"])
            self._pending = state["pending"]
            self._control = self._device.config.get(self._capability + 2, 2)
