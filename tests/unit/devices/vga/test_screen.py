"""What is on the screen: characters, cursor, blinking, blanking, the beam."""

from __future__ import annotations

from tests.judges.vga.adapters import VIDEO_MEMORY_SIZE, OurVga
from tests.judges.vga.modes import MODE_06, MODE_13, TEXT_80X25, set_linear, set_mode, set_palette, write_file

from sublet.devices.vga import TEXT_RAM_SIZE, Vga, render, text_screen
from sublet.testing import FakeClock, FakeDeviceRam

WHITE_AT_63 = bytes((0,) * 189 + (63,) * 3)
FONT_A = bytes((0xFF,) * 32)


def text_mode() -> OurVga:
    """80 by 25, all blank, with a font whose ``A`` is a full block."""
    ours = OurVga()
    set_mode(ours, TEXT_80X25)
    set_palette(ours, bytes(value for colour in range(64) for value in (colour,) * 3))
    font = bytearray(0x2000)
    font[32 * 0x41 : 32 * 0x42] = FONT_A
    ours.vga.memory[2 : 4 * len(font) : 4] = bytes(font)
    return ours


def put(ours: OurVga, column: int, row: int, character: int, attribute: int) -> None:
    ours.writeb(0xB8000 + 2 * (80 * row + column), character)
    ours.writeb(0xB8001 + 2 * (80 * row + column), attribute)


def cursor(ours: OurVga, column: int, row: int) -> None:
    at = 80 * row + column
    write_file(ours, 0x3D4, [(0x0E, at >> 8), (0x0F, at & 0xFF)])


def test_characters_colours_and_cursor() -> None:
    ours = text_mode()
    put(ours, 2, 1, 0xC9, 0x1E)
    cursor(ours, 3, 1)
    screen = text_screen(ours.vga)
    assert screen is not None
    assert (screen.columns, screen.rows, screen.cursor) == (80, 25, (3, 1))
    cell = screen.cells[82]
    assert (cell.character, cell.foreground, cell.background) == ("╔", 14, 1)
    assert screen.text().splitlines()[1] == "  ╔"


def test_blinking_takes_the_bright_backgrounds() -> None:
    ours = text_mode()
    put(ours, 0, 0, 0x41, 0x9E)
    bright = text_screen(ours.vga)
    ours.inb(0x3DA)
    for value in (0x30, 0x08):
        ours.outb(0x3C0, value)
    blinking = text_screen(ours.vga)
    assert bright is not None
    assert blinking is not None
    assert (bright.cells[0].background, bright.cells[0].blinks) == (9, False)
    assert (blinking.cells[0].background, blinking.cells[0].blinks) == (1, True)
    shown = render(ours.vga, blink_on=True).rgb[:3]
    hidden = render(ours.vga, blink_on=False).rgb[:3]
    assert shown != hidden


def test_the_cursor_is_drawn_in_the_foreground() -> None:
    ours = text_mode()
    write_file(ours, 0x3D4, [(0x0A, 14), (0x0B, 15)])
    put(ours, 1, 0, 0x20, 0x0F)
    cursor(ours, 1, 0)
    picture = render(ours.vga)
    assert (picture.width, picture.height) == (720, 400)
    at = [3 * (720 * line + 9) for line in (13, 14, 15)]
    assert [picture.rgb[i] for i in at] == [0, 255, 255]


def test_a_hidden_cursor_is_none() -> None:
    ours = text_mode()
    write_file(ours, 0x3D4, [(0x0A, 0x20)])
    screen = text_screen(ours.vga)
    assert screen is not None
    assert screen.cursor is None


def test_the_ninth_dot_joins_boxes_only() -> None:
    ours = text_mode()
    ours.vga.memory[2 + 4 * 32 * 0xC4 : 2 + 4 * 32 * 0xC5 : 4] = FONT_A
    put(ours, 0, 0, 0x41, 0x0F)
    put(ours, 1, 0, 0xC4, 0x0F)
    rgb = render(ours.vga, blink_on=False).rgb
    assert [rgb[3 * dot] for dot in (7, 8, 16, 17)] == [255, 0, 255, 255]


def test_smooth_scrolling_moves_rows_and_dots() -> None:
    ours = text_mode()
    put(ours, 1, 1, 0x41, 0x0F)
    write_file(ours, 0x3D4, [(0x08, 16 - 1)])
    ours.inb(0x3DA)
    for value in (0x33, 0x03):  # panning by four dots in a 9-dot mode
        ours.outb(0x3C0, value)
    rgb = render(ours.vga, blink_on=False).rgb
    first_lit = next(i for i in range(0, len(rgb), 3) if rgb[i])
    assert divmod(first_lit // 3, 720) == (1, 9 - 4)


def test_no_text_in_graphics_modes() -> None:
    ours = OurVga()
    set_mode(ours, MODE_13)
    assert text_screen(ours.vga) is None
    set_mode(ours, TEXT_80X25)
    set_linear(ours, 640, 480, 32)
    assert text_screen(ours.vga) is None


def test_cga_two_colours_takes_odd_lines_from_the_second_bank() -> None:
    ours = OurVga()
    set_mode(ours, MODE_06)
    set_palette(ours, bytes(3 * 0x17) + b"\x3f\x3f\x3f")
    ours.writeb(0xB8000 + 0x2000, 0x80)
    picture = render(ours.vga)
    assert (picture.width, picture.height) == (640, 400)
    lit = [i // 3 for i in range(0, len(picture.rgb), 3) if picture.rgb[i]]
    assert lit == [2 * 640, 3 * 640]


def test_a_screen_that_is_off_is_black() -> None:
    ours = text_mode()
    put(ours, 0, 0, 0x41, 0x0F)
    ours.inb(0x3DA)
    ours.outb(0x3C0, 0x00)
    assert not any(render(ours.vga).rgb)


def test_more_text_than_a_screen_has_is_cut() -> None:
    ours = text_mode()
    write_file(ours, 0x3D4, [(0x11, 0), (0x01, 0xFF), (0x09, 0), (0x07, 0x42), (0x12, 0xFF)])
    screen = text_screen(ours.vga)
    assert screen is not None
    assert (screen.columns, screen.rows, len(screen.cells)) == (256, 62, 256 * 62)


def test_power_on_renders() -> None:
    assert not any(render(OurVga().vga).rgb)


def test_pixel_mask() -> None:
    ours = OurVga()
    set_mode(ours, MODE_13)
    set_palette(ours, b"\0\0\0\x3f\0\0")
    ours.writeb(0xA0000, 0xF1)
    ours.outb(0x3C6, 0x01)
    assert render(ours.vga).rgb[:3] == b"\xff\0\0"


def test_the_beam_reaches_every_phase() -> None:
    clock = FakeClock()
    vga = Vga(FakeDeviceRam(VIDEO_MEMORY_SIZE), FakeDeviceRam(TEXT_RAM_SIZE), clock)
    vga.registers.misc = 1
    vga.registers.crtc[:] = TEXT_80X25.crtc
    seen = []
    for _ in range(20_000):
        clock.advance(1e-6)
        seen.append(vga.registers.read(0x3DA))
    assert {0, 1, 9} == set(seen)
    assert 0.002 < seen.count(9) / len(seen) < 0.02
