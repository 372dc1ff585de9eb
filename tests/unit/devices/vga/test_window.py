"""The memory window: when the guest gets RAM in place of exits, and that nobody sees the difference."""

from __future__ import annotations

import pytest
from tests.judges.vga.adapters import OurVga
from tests.judges.vga.modes import MODE_12, MODE_13, TEXT_80X25, set_linear, set_mode, write_dispi, write_file

from sublet.testing import FakeRamWindow


@pytest.fixture
def ours() -> OurVga:
    return OurVga()


def text_window(ours: OurVga) -> FakeRamWindow:
    return ours.text_ram.windows[0]


def video_window(ours: OurVga) -> FakeRamWindow:
    return ours.video_ram.windows[0]


def test_text_is_ram_from_the_first_access_on(ours: OurVga) -> None:
    set_mode(ours, TEXT_80X25)
    assert text_window(ours).placed is None
    ours.writeb(0xB8000, 0x41)
    assert text_window(ours).placed == (0xB8000, 0x8000, 0)
    assert ours.text_ram.buffer[0] == 0x41


def test_what_the_guest_stores_as_text_reaches_the_planes(ours: OurVga) -> None:
    set_mode(ours, TEXT_80X25)
    ours.readb(0xB8000)
    ours.text_ram.buffer[:4] = b"A\x07B\x1f"  # the guest's own stores, without an exit
    set_mode(ours, MODE_12)
    assert text_window(ours).placed is None
    assert ours.memory(0, 8) == b"A\x07\0\0B\x1f\0\0"


def test_text_shows_what_was_drawn_into_the_planes(ours: OurVga) -> None:
    set_mode(ours, TEXT_80X25)
    ours.fill(0, b"A\x07\0\0B\x1f\0\0")
    assert [ours.readb(0xB8000 + i) for i in range(4)] == [*b"A\x07B\x1f"]


def test_text_with_a_masked_plane_exits(ours: OurVga) -> None:
    set_mode(ours, TEXT_80X25)
    write_file(ours, 0x3C4, [(2, 1)])
    ours.writeb(0xB8001, 0x77)
    assert text_window(ours).placed is None
    assert ours.readb(0xB8001) == 0


def test_chained_memory_is_ram(ours: OurVga) -> None:
    set_mode(ours, MODE_13)
    ours.writeb(0xA0000, 5)
    assert video_window(ours).placed == (0xA0000, 0x1_0000, 0)


def test_a_bank_moves_the_ram(ours: OurVga) -> None:
    set_linear(ours, 640, 480, 8)
    ours.writeb(0xA0000, 5)
    write_dispi(ours, 5, 3)
    assert video_window(ours).placed is None
    ours.writeb(0xA0000, 6)
    assert video_window(ours).placed == (0xA0000, 0x1_0000, 0x3_0000)
    assert ours.memory(0x3_0000, 1) == b"\x06"


def test_planar_modes_exit(ours: OurVga) -> None:
    set_mode(ours, MODE_12)
    ours.writeb(0xA0000, 5)
    assert video_window(ours).placed is None
    assert text_window(ours).placed is None


def test_wide_accesses_are_bytes_in_order(ours: OurVga) -> None:
    set_mode(ours, MODE_12)
    ours.vga.window.mmio_write(0x10, 4, 0x44332211)
    assert [ours.readb(0xA0010 + i) for i in range(4)] == [0x11, 0x22, 0x33, 0x44]
    assert ours.vga.window.mmio_read(0x10, 8) & 0xFFFF_FFFF == 0x44332211


def test_reset_takes_the_ram_away(ours: OurVga) -> None:
    set_mode(ours, TEXT_80X25)
    ours.writeb(0xB8000, 0x41)
    ours.vga.reset()
    assert text_window(ours).placed is None
    assert ours.memory(0, 1) == b"A"


def test_state_round_trip(ours: OurVga) -> None:
    set_mode(ours, TEXT_80X25)
    ours.writeb(0xB8000, 0x41)
    state = ours.vga.save_state()
    other = OurVga()
    set_mode(other, MODE_13)
    other.writeb(0xA0000, 1)
    other.vga.load_state(state)
    assert other.vga.save_state() == state
    assert other.readb(0xB8000) == 0x41
    assert text_window(other).placed is not None
