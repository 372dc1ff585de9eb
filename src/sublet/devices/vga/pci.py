"""The adapter as a PCI function: framebuffer in BAR 0, registers in BAR 2, its BIOS in the ROM.

Reference: QEMU docs/specs/standard-vga.rst (8.2) "PCI spec".
"""

from __future__ import annotations

from typing import Any

from sublet.devices.pci import Bar, BarKind, PciDevice
from sublet.devices.vga.adapter import Vga
from sublet.devices.vga.dispi import REGISTER_COUNT
from sublet.hw import DeviceRam

VENDOR_ID, DEVICE_ID, CLASS_VGA = 0x1234, 0x1111, 0x030000
REVISION = 2
"""BAR 2 has the registers of 400h, 500h and 600h."""

_BAR_SIZE = 0x1000
_VGA_AT, _VGA_COUNT, _VGA_FIRST_PORT = 0x400, 0x20, 0x3C0
_DISPI_AT = 0x500
_EXTENSION_AT, _EXTENSION_SIZE, _BYTE_ORDER = 0x600, 8, 0x604
_LITTLE_ENDIAN = 0x1E1E_1E1E


class VgaPci(PciDevice):
    """PCI 1234:1111.

    Args:
        vga: The adapter; its ports and window are the board's to map, as legacy decoding is fixed.
        video_ram: The adapter's video memory.
        subsystem_vendor_id: 16 bits.
        subsystem_id: 16 bits.
    """

    def __init__(
        self, vga: Vga, video_ram: DeviceRam, *, subsystem_vendor_id: int = 0x1AF4, subsystem_id: int = 0x1100
    ) -> None:
        super().__init__(
            vendor_id=VENDOR_ID,
            device_id=DEVICE_ID,
            class_code=CLASS_VGA,
            revision=REVISION,
            subsystem_vendor_id=subsystem_vendor_id,
            subsystem_id=subsystem_id,
        )
        self._vga = vga
        self.add_bar(Bar(0, BarKind.MEMORY32, len(video_ram.buffer), video_ram.window()))
        self.add_bar(Bar(2, BarKind.MEMORY32, _BAR_SIZE, _RegisterBar(vga)))

    def reset(self) -> None:
        """Power-on state of the function and of the adapter."""
        super().reset()
        self._vga.reset()

    def save_state(self) -> dict[str, Any]:
        """Configuration space and adapter."""
        return super().save_state() | {"vga": self._vga.save_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        super().load_state(state)
        self._vga.load_state(state["vga"])


class _RegisterBar:
    """4 KiB: VGA ports 3C0h to 3DFh at 400h, the display interface at 500h; the rest reads as 0.

    Deviation: there is no EDID at 0; drivers then offer their own list of modes.
    """

    def __init__(self, vga: Vga) -> None:
        self._vga = vga

    def mmio_read(self, offset: int, size: int) -> int:
        """Read registers; bytes of the VGA's, words of the display interface's."""
        with self._vga.lock:
            return sum(self._read_byte(offset + i) << 8 * i for i in range(size))

    def _read_byte(self, offset: int) -> int:
        if _VGA_AT <= offset < _VGA_AT + _VGA_COUNT:
            return self._vga.registers.read(offset - _VGA_AT + _VGA_FIRST_PORT)
        if _DISPI_AT <= offset < _DISPI_AT + 2 * REGISTER_COUNT:
            return self._vga.dispi.read(offset - _DISPI_AT >> 1) >> 8 * (offset & 1) & 0xFF
        if _EXTENSION_AT <= offset < _EXTENSION_AT + 4:
            return _EXTENSION_SIZE >> 8 * (offset - _EXTENSION_AT) & 0xFF
        if _BYTE_ORDER <= offset < _BYTE_ORDER + 4:
            return _LITTLE_ENDIAN & 0xFF
        return 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Write registers; of the display interface's, whole ones."""
        with self._vga.lock:
            if _DISPI_AT <= offset < _DISPI_AT + 2 * REGISTER_COUNT:
                if size >= 2 and not offset & 1:
                    self._vga.dispi.write(offset - _DISPI_AT >> 1, value & 0xFFFF)
                return
            for i in range(size):
                at = offset + i
                if _VGA_AT <= at < _VGA_AT + _VGA_COUNT:
                    self._vga.registers.write(at - _VGA_AT + _VGA_FIRST_PORT, value >> 8 * i & 0xFF)
