"""The register files of a VGA, at ports 3B0h to 3DFh.

Reference: IBM VGA XGA Technical Reference (1992) §2 "VGA Function"; reserved bits read back as the
common clones have them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sublet.devices.vga.palette import Palette
from sublet.devices.vga.retrace import Retrace
from sublet.hw import Clock

MISC_COLOUR = 1 << 0
"""Miscellaneous output: the CRTC is at 3D4h; otherwise at 3B4h."""
_MISC_WRITABLE = 0xEF
_FEATURE_WRITABLE = 0x10

SEQUENCER_CLOCKING = 1
SEQUENCER_MAP_MASK = 2
SEQUENCER_FONTS = 3
SEQUENCER_MEMORY_MODE = 4
_SEQUENCER_WRITABLE = bytes((0x03, 0x3D, 0x0F, 0x3F, 0x0E, 0, 0, 0xFF))

GRAPHICS_READ_MAP = 4
GRAPHICS_MODE = 5
GRAPHICS_MISC = 6
_GRAPHICS_WRITABLE = bytes((0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF))

ATTRIBUTE_MODE = 0x10
ATTRIBUTE_PLANES = 0x12
ATTRIBUTE_PANNING = 0x13
ATTRIBUTE_COLOUR_SELECT = 0x14
_ATTRIBUTE_WRITABLE = bytes((0x3F,) * 16 + (0xEF, 0xFF, 0x3F, 0x0F, 0x0F))
_PALETTE_SOURCE = 1 << 5
"""Attribute index: the palette feeds the screen; cleared, the screen is blank."""

CRTC_COUNT = 0x19
_CRTC_PROTECT = 0x80
"""In CRTC register 11h: registers 0 to 7 keep their values, except for the line compare bit of 7."""
_CRTC_LINE_COMPARE_BIT = 0x10

_FLOATING = 0xFF
"""What a port that nobody decodes reads as."""


class VgaRegisters:
    """Every register of a VGA. Bad input, by design: indices without a register read as 0.

    Callers hold the adapter's lock.

    Args:
        clock: Moves the beam.
        on_memory_change: Called after a write to a register that decides what the memory window shows.
    """

    def __init__(self, clock: Clock, on_memory_change: Callable[[], None]) -> None:
        self.palette = Palette()
        self._retrace = Retrace(clock)
        self._on_memory_change = on_memory_change
        self._set_power_on_values()

    def _set_power_on_values(self) -> None:
        self.misc = 0
        self.feature = 0
        self.sequencer = bytearray(len(_SEQUENCER_WRITABLE))
        self.graphics = bytearray(len(_GRAPHICS_WRITABLE))
        self.attribute = bytearray(len(_ATTRIBUTE_WRITABLE))
        self.crtc = bytearray(CRTC_COUNT)
        self._sequencer_index = 0
        self._graphics_index = 0
        self._crtc_index = 0
        self._attribute_index = 0
        self._attribute_data_next = False

    @property
    def screen_on(self) -> bool:
        """Whether the palette feeds the screen and the sequencer fetches pixels."""
        return bool(self._attribute_index & _PALETTE_SOURCE) and not self.sequencer[SEQUENCER_CLOCKING] & 0x20

    # Guest side

    def read(self, port: int) -> int:
        """Read the byte at ``port``; ports of the other kind of monitor float."""
        reader = _READERS.get(port)
        if reader is None or self._is_other_monitor(port):
            return _FLOATING
        return reader(self)

    def write(self, port: int, value: int) -> None:
        """Write a byte to ``port``."""
        writer = _WRITERS.get(port)
        if writer is not None and not self._is_other_monitor(port):
            writer(self, value)

    def _is_other_monitor(self, port: int) -> bool:
        """3Bxh decodes with a monochrome monitor, 3Dxh with a colour one."""
        return port & 0x3F0 == (0x3B0 if self.misc & MISC_COLOUR else 0x3D0)

    def _read_attribute_index(self) -> int:
        return 0 if self._attribute_data_next else self._attribute_index

    def _read_attribute(self) -> int:
        index = self._attribute_index & 0x1F
        return self.attribute[index] if index < len(self.attribute) else 0

    def _write_attribute(self, value: int) -> None:
        """Index and data take turns; reading input status 1 makes the index next."""
        if not self._attribute_data_next:
            self._attribute_index = value & 0x3F
        else:
            index = self._attribute_index & 0x1F
            if index < len(self.attribute):
                self.attribute[index] = value & _ATTRIBUTE_WRITABLE[index]
        self._attribute_data_next = not self._attribute_data_next

    def _read_input_status_0(self) -> int:
        return 0

    def _read_input_status_1(self) -> int:
        self._attribute_data_next = False
        return self._retrace.status(self.crtc)

    def _read_misc(self) -> int:
        return self.misc

    def _write_misc(self, value: int) -> None:
        self.misc = value & _MISC_WRITABLE
        self._on_memory_change()

    def _read_feature(self) -> int:
        return self.feature

    def _write_feature(self, value: int) -> None:
        self.feature = value & _FEATURE_WRITABLE

    def _read_sequencer_index(self) -> int:
        return self._sequencer_index

    def _write_sequencer_index(self, value: int) -> None:
        self._sequencer_index = value & 7

    def _read_sequencer(self) -> int:
        return self.sequencer[self._sequencer_index]

    def _write_sequencer(self, value: int) -> None:
        index = self._sequencer_index
        self.sequencer[index] = value & _SEQUENCER_WRITABLE[index]
        self._on_memory_change()

    def _read_graphics_index(self) -> int:
        return self._graphics_index

    def _write_graphics_index(self, value: int) -> None:
        self._graphics_index = value & 0x0F

    def _read_graphics(self) -> int:
        index = self._graphics_index
        return self.graphics[index] if index < len(self.graphics) else 0

    def _write_graphics(self, value: int) -> None:
        index = self._graphics_index
        if index < len(self.graphics):
            self.graphics[index] = value & _GRAPHICS_WRITABLE[index]
            if index in (GRAPHICS_READ_MAP, GRAPHICS_MODE, GRAPHICS_MISC):
                self._on_memory_change()

    def _read_crtc_index(self) -> int:
        return self._crtc_index

    def _write_crtc_index(self, value: int) -> None:
        self._crtc_index = value

    def _read_crtc(self) -> int:
        return self.crtc[self._crtc_index] if self._crtc_index < CRTC_COUNT else 0

    def _write_crtc(self, value: int) -> None:
        index = self._crtc_index
        if index >= CRTC_COUNT:
            return
        if index <= 7 and self.crtc[0x11] & _CRTC_PROTECT:
            if index == 7:
                kept = self.crtc[7] & ~_CRTC_LINE_COMPARE_BIT
                self.crtc[7] = kept | value & _CRTC_LINE_COMPARE_BIT
            return
        self.crtc[index] = value

    def _read_pixel_mask(self) -> int:
        return self.palette.mask

    def _write_pixel_mask(self, value: int) -> None:
        self.palette.mask = value

    def _read_palette_state(self) -> int:
        return self.palette.state

    def _write_palette_read_address(self, value: int) -> None:
        self.palette.set_read_address(value)

    def _read_palette_write_address(self) -> int:
        return self.palette.write_address

    def _write_palette_write_address(self, value: int) -> None:
        self.palette.set_write_address(value)

    def _read_palette(self) -> int:
        return self.palette.read()

    def _write_palette(self, value: int) -> None:
        self.palette.write(value)

    # What a VBE mode implies

    def prepare_linear(self, bits: int) -> None:
        """Address memory as a VBE mode of ``bits`` a pixel has it, through 64 KiB at A0000h."""
        self.graphics[GRAPHICS_MISC] = self.graphics[GRAPHICS_MISC] & ~0x0C | 0x05
        mode = self.graphics[GRAPHICS_MODE] & ~0x60
        if bits == 4:
            self.sequencer[SEQUENCER_CLOCKING] &= ~0x08
        else:
            mode |= 0x40
            self.sequencer[SEQUENCER_MAP_MASK] = 0x0F
            self.sequencer[SEQUENCER_MEMORY_MODE] |= 0x08
        self.graphics[GRAPHICS_MODE] = mode
        self._on_memory_change()

    # Lifecycle

    def reset(self) -> None:
        """Power-on state: every register 0, the screen blank."""
        self.palette.reset()
        self._set_power_on_values()
        self._on_memory_change()

    def save_state(self) -> dict[str, Any]:
        """All registers and the palette."""
        state: dict[str, Any] = {name: getattr(self, name) for name in _STATE_FIELDS}
        state |= {name: bytes(getattr(self, name)) for name in _FILES}
        return state | {"palette": self.palette.save_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        for name in _STATE_FIELDS:
            setattr(self, name, state[name])
        for name in _FILES:
            setattr(self, name, bytearray(state[name]))
        self.palette.load_state(state["palette"])
        self._on_memory_change()


_FILES = ("sequencer", "graphics", "attribute", "crtc")
_STATE_FIELDS = (
    "misc",
    "feature",
    "_sequencer_index",
    "_graphics_index",
    "_crtc_index",
    "_attribute_index",
    "_attribute_data_next",
)

_READERS: dict[int, Callable[[VgaRegisters], int]] = {
    0x3C0: VgaRegisters._read_attribute_index,
    0x3C1: VgaRegisters._read_attribute,
    0x3C2: VgaRegisters._read_input_status_0,
    0x3C4: VgaRegisters._read_sequencer_index,
    0x3C5: VgaRegisters._read_sequencer,
    0x3C6: VgaRegisters._read_pixel_mask,
    0x3C7: VgaRegisters._read_palette_state,
    0x3C8: VgaRegisters._read_palette_write_address,
    0x3C9: VgaRegisters._read_palette,
    0x3CA: VgaRegisters._read_feature,
    0x3CC: VgaRegisters._read_misc,
    0x3CE: VgaRegisters._read_graphics_index,
    0x3CF: VgaRegisters._read_graphics,
    0x3B4: VgaRegisters._read_crtc_index,
    0x3B5: VgaRegisters._read_crtc,
    0x3BA: VgaRegisters._read_input_status_1,
    0x3D4: VgaRegisters._read_crtc_index,
    0x3D5: VgaRegisters._read_crtc,
    0x3DA: VgaRegisters._read_input_status_1,
}

_WRITERS: dict[int, Callable[[VgaRegisters, int], None]] = {
    0x3C0: VgaRegisters._write_attribute,
    0x3C2: VgaRegisters._write_misc,
    0x3C4: VgaRegisters._write_sequencer_index,
    0x3C5: VgaRegisters._write_sequencer,
    0x3C6: VgaRegisters._write_pixel_mask,
    0x3C7: VgaRegisters._write_palette_read_address,
    0x3C8: VgaRegisters._write_palette_write_address,
    0x3C9: VgaRegisters._write_palette,
    0x3CE: VgaRegisters._write_graphics_index,
    0x3CF: VgaRegisters._write_graphics,
    0x3B4: VgaRegisters._write_crtc_index,
    0x3B5: VgaRegisters._write_crtc,
    0x3BA: VgaRegisters._write_feature,
    0x3D4: VgaRegisters._write_crtc_index,
    0x3D5: VgaRegisters._write_crtc,
    0x3DA: VgaRegisters._write_feature,
}
