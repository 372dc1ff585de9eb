"""The same accesses to our VGA and to QEMU's: registers, video memory and pixels must agree.

Colours are compared in the bits that the mode has: how they are widened to eight is a choice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.judges.vga.adapters import Adapter, OurVga, QemuVga
from tests.judges.vga.modes import (
    MODE_0D,
    MODE_04,
    MODE_06,
    MODE_12,
    MODE_13,
    MODE_X,
    TEXT_40X25_8_DOTS,
    TEXT_80X25,
    Mode,
    read_dispi,
    set_linear,
    set_mode,
    set_palette,
    write_dispi,
    write_file,
)

Pair = tuple[OurVga, QemuVga]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    qemu = QemuVga(tmp_path)
    try:
        yield OurVga(), qemu
    finally:
        qemu.close()


def on_both(pair: Pair, program: Callable[[Adapter], object]) -> None:
    """Run a program on both; what it returns must be equal."""
    ours, theirs = program(pair[0]), program(pair[1])
    assert ours == theirs


def compare_pictures(pair: Pair, bits: int = 6) -> None:
    """Sizes and every pixel, as far as ``bits`` of each component go."""
    ours, theirs = pair[0].picture(), pair[1].picture()
    assert (ours.width, ours.height) == (theirs.width, theirs.height)
    kept = bytes(value >> 8 - bits for value in range(256))
    mine, judged = ours.rgb.translate(kept), theirs.rgb.translate(kept)
    if mine != judged:
        at = next(i for i in range(len(mine)) if mine[i] != judged[i])
        y, x = divmod(at // 3, ours.width)
        pytest.fail(
            f"pixel {x},{y}: {ours.rgb[at - at % 3 :][:3].hex()} {theirs.rgb[at - at % 3 :][:3].hex()}"
        )


def random_palette(seed: int) -> bytes:
    return bytes(random.Random(seed).choices(range(64), k=768))


def draw(pair: Pair, mode: Mode, data: bytes, *more: Callable[[Adapter], object]) -> None:
    """Set a mode with colours and memory, do more, and compare the pictures."""

    def program(adapter: Adapter) -> None:
        set_mode(adapter, mode)
        set_palette(adapter, random_palette(1))
        adapter.fill(0, data)

    for step in (program, *more):
        on_both(pair, step)
    compare_pictures(pair)


def noise(size: int, seed: int = 7) -> bytes:
    return random.Random(seed).randbytes(size)


def crtc(*values: tuple[int, int]) -> Callable[[Adapter], object]:
    return lambda adapter: write_file(adapter, 0x3D4, values)


def test_registers_keep_the_same_bits(pair: Pair) -> None:
    def program(adapter: Adapter) -> list[int]:
        rng = random.Random(3)
        seen = []
        for _ in range(3):
            set_mode(adapter, MODE_12)
            write_file(adapter, 0x3D4, [(0x11, rng.randrange(256))])
            for index_port, count in ((0x3C4, 5), (0x3CE, 9), (0x3D4, 0x19)):
                values = [(index, rng.randrange(256)) for index in range(count)]
                write_file(adapter, index_port, values)
                for index in range(count):
                    adapter.outb(index_port, index)
                    seen += [adapter.inb(index_port), adapter.inb(index_port + 1)]
            adapter.inb(0x3DA)
            for index in range(0x15):
                adapter.outb(0x3C0, index)
                adapter.outb(0x3C0, rng.randrange(256))
                adapter.outb(0x3C0, index)
                seen.append(adapter.inb(0x3C1))
                adapter.inb(0x3DA)
            adapter.outb(0x3DA, 0xFF)
            seen += [adapter.inb(port) for port in (0x3C2, 0x3CA, 0x3CC, 0x3C0, 0x3B4, 0x3B5)]
        return seen

    on_both(pair, program)


def test_the_palette_counts_alike(pair: Pair) -> None:
    def program(adapter: Adapter) -> list[int]:
        set_palette(adapter, random_palette(5))
        adapter.outb(0x3C7, 254)
        seen = [adapter.inb(0x3C7), *(adapter.inb(0x3C9) for _ in range(12))]
        adapter.outb(0x3C8, 9)
        return [*seen, adapter.inb(0x3C7), adapter.inb(0x3C8)]

    on_both(pair, program)


def test_every_read_and_write_mode(pair: Pair) -> None:
    """Random settings of the graphics controller and sequencer, random bytes through the window."""

    def program(adapter: Adapter) -> list[object]:
        rng = random.Random(11)
        seen: list[object] = []
        adapter.outb(0x3C2, 0x63)
        adapter.fill(0, noise(0x1000))
        for _ in range(60):
            write_file(adapter, 0x3CE, [(index, rng.randrange(256)) for index in range(9)])
            write_file(adapter, 0x3CE, [(6, rng.randrange(4) << 2 | 1)])
            write_file(adapter, 0x3C4, [(2, rng.randrange(16)), (4, rng.choice((2, 6, 6, 6, 0xE)))])
            for _ in range(8):
                address = rng.choice((0xA0000, 0xA0000, 0xB0000, 0xB8000)) + rng.randrange(64)
                seen.append(adapter.readb(address))
                adapter.writeb(address ^ 1, rng.randrange(256))
                seen.append(adapter.readb(address + 1))
            seen.append(adapter.memory(0, 256))
        return seen

    on_both(pair, program)


def test_planar_16_colours(pair: Pair) -> None:
    draw(pair, MODE_12, noise(0x40000))


def test_planar_with_half_clock(pair: Pair) -> None:
    draw(pair, MODE_0D, noise(0x40000))


def test_planes_that_are_not_shown(pair: Pair) -> None:
    def hide(adapter: Adapter) -> None:
        adapter.inb(0x3DA)
        for value in (0x32, 0x05):
            adapter.outb(0x3C0, value)

    draw(pair, MODE_12, noise(0x40000), hide)


def test_colour_select_replaces_palette_bits(pair: Pair) -> None:
    def select(adapter: Adapter) -> None:
        adapter.inb(0x3DA)
        for value in (0x30, 0x81, 0x34, 0x06):
            adapter.outb(0x3C0, value)

    draw(pair, MODE_12, noise(0x40000), select)


def test_chained_256_colours(pair: Pair) -> None:
    draw(pair, MODE_13, noise(0x40000))


def test_unchained_256_colours_from_another_page(pair: Pair) -> None:
    draw(pair, MODE_X, noise(0x40000), crtc((0x0C, 0x3E), (0x0D, 0x80)))


def test_cga_four_colours(pair: Pair) -> None:
    draw(pair, MODE_04, noise(0x40000))


def test_cga_two_colours(pair: Pair) -> None:
    draw(pair, MODE_06, noise(0x40000))


def test_split_screen(pair: Pair) -> None:
    split = crtc((0x0C, 0x10), (0x18, 0x63), (0x07, 0x0F), (0x09, 0x01))
    unprotect = crtc((0x11, 0x0E))
    draw(pair, MODE_13, noise(0x40000), unprotect, split)


def cells(count: int, *, seed: int = 2) -> bytes:
    """Words of text: any character but those that only some cards join, any attribute; the font stays."""
    rng = random.Random(seed)
    words = bytearray(4 * count)
    characters = [c for c in range(256) if not 0xB0 <= c < 0xC0]
    words[0::4] = bytes(rng.choices(characters, k=count))
    words[1::4] = rng.randbytes(count)
    return bytes(words)


def with_fonts(text: bytes, fonts: bytes) -> bytes:
    """Video memory with ``text`` in planes 0 and 1 and ``fonts`` in plane 2."""
    memory = bytearray(0x40000)
    memory[: len(text)] = text
    memory[2 : 4 * len(fonts) : 4] = fonts
    return bytes(memory)


def hide_cursor(adapter: Adapter) -> None:
    write_file(adapter, 0x3D4, [(0x0A, 0x20)])


@pytest.mark.parametrize("mode", [TEXT_80X25, TEXT_40X25_8_DOTS], ids=["80x25", "40x25"])
def test_text(pair: Pair, mode: Mode) -> None:
    draw(pair, mode, with_fonts(cells(4000), noise(0x2000)), hide_cursor)


def test_text_with_two_fonts_from_another_page(pair: Pair) -> None:
    fonts = lambda adapter: write_file(adapter, 0x3C4, [(3, 0x2D)])  # noqa: E731
    memory = with_fonts(cells(0x3000), noise(0x10000))
    draw(pair, TEXT_80X25, memory, hide_cursor, fonts, crtc((0x0C, 0x12), (0x0D, 0x34)))


def test_text_written_through_the_window(pair: Pair) -> None:
    def program(adapter: Adapter) -> list[int]:
        set_mode(adapter, TEXT_80X25)
        hide_cursor(adapter)
        set_palette(adapter, random_palette(1))
        for index, value in enumerate(b"h\x07e\x1fl\x2fl\x3fo\x4f"):
            adapter.writeb(0xB8000 + index, value)
        return [adapter.readb(0xB8000 + index) for index in range(16)]

    on_both(pair, program)
    on_both(pair, lambda adapter: adapter.memory(0, 64))
    compare_pictures(pair)


@pytest.mark.parametrize("bits", [4, 8, 15, 16, 24, 32])
def test_linear_modes(pair: Pair, bits: int) -> None:
    def program(adapter: Adapter) -> None:
        set_mode(adapter, MODE_13)
        set_palette(adapter, random_palette(4))
        set_linear(adapter, 640, 400, bits)
        write_dispi(adapter, 6, 672)
        write_dispi(adapter, 8, 16)
        write_dispi(adapter, 9, 5)
        for start in range(0, 0x140000, 0x20000):
            adapter.fill(start, noise(0x20000, start))

    on_both(pair, program)
    compare_pictures(pair, bits=5 if bits == 15 else 6)


def test_a_palette_of_8_bits(pair: Pair) -> None:
    def program(adapter: Adapter) -> None:
        set_mode(adapter, MODE_13)
        set_linear(adapter, 320, 200, 8, flags=0x61)
        set_palette(adapter, bytes(range(256)) * 3)
        adapter.fill(0, noise(64000))

    on_both(pair, program)
    compare_pictures(pair, bits=8)


def test_the_display_interface_fits_what_is_asked(pair: Pair) -> None:
    def program(adapter: Adapter) -> list[int]:
        rng = random.Random(8)
        seen = []
        for bits in (8, 15, 16, 24, 32):
            set_linear(adapter, rng.randrange(8, 2000), rng.randrange(1, 2000), bits)
            for index in (6, 8, 9, 1):
                write_dispi(adapter, index, rng.randrange(2500))
                seen += [read_dispi(adapter, register) for register in range(11)]
            write_dispi(adapter, 4, 0x43)
            seen += [read_dispi(adapter, register) for register in range(11)]
        return seen

    on_both(pair, program)


def test_banks_of_a_linear_mode(pair: Pair) -> None:
    def program(adapter: Adapter) -> list[object]:
        set_linear(adapter, 640, 480, 8)
        seen: list[object] = []
        for bank in (0, 3, 255, 256, 1000):
            write_dispi(adapter, 5, bank)
            adapter.writeb(0xA0005, bank & 0xFF)
            seen += [read_dispi(adapter, 5), adapter.readb(0xA0005), adapter.readb(0xB0000)]
        return [*seen, adapter.memory(3 << 16, 16)]

    on_both(pair, program)
