"""A VGA-compatible display adapter with the Bochs display interface (PCI 1234:1111)."""

from __future__ import annotations

from sublet.devices.vga.adapter import VIDEO_MEMORY_SIZE, PortRange, Vga
from sublet.devices.vga.pci import VgaPci
from sublet.devices.vga.render import Picture, render
from sublet.devices.vga.text import Cell, TextScreen, text_screen
from sublet.devices.vga.window import TEXT_RAM_SIZE, WINDOW_BASE, WINDOW_SIZE

__all__ = [
    "TEXT_RAM_SIZE",
    "VIDEO_MEMORY_SIZE",
    "WINDOW_BASE",
    "WINDOW_SIZE",
    "Cell",
    "Picture",
    "PortRange",
    "TextScreen",
    "Vga",
    "VgaPci",
    "render",
    "text_screen",
]
