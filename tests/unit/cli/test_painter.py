"""The machine's screen in a terminal; a real terminal emulator says what is to be seen there."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sublet.cli.painter import BLANK, Frame, Painter, picture_frame, text_frame
from sublet.devices.vga import Cell, Picture, TextScreen

COLOURS = ((0, 0, 0),) * 16


def screen_of(*lines: str, cursor: tuple[int, int] | None = None) -> TextScreen:
    """Light grey on black."""
    columns = max(map(len, lines))
    cells = tuple(Cell(sign, 7, 0, False, False) for line in lines for sign in line.ljust(columns))
    return TextScreen(columns, len(lines), cells, cursor, COLOURS)


class Recorder:
    """What a painter writes."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.painter = Painter(self.written.append)

    def show(self, frame: Frame) -> bytes:
        self.written.clear()
        self.painter.show(frame)
        return b"".join(self.written)


def test_nothing_is_drawn_twice() -> None:
    recorder = Recorder()
    assert b"hello" in recorder.show(text_frame(screen_of("hello", cursor=(0, 0)), 10, 3))
    assert recorder.show(text_frame(screen_of("hello", cursor=(0, 0)), 10, 3)) == b""


def test_only_what_changed_is_drawn() -> None:
    recorder = Recorder()
    recorder.show(text_frame(screen_of("hello", "there"), 10, 3))
    changed = recorder.show(text_frame(screen_of("hello", "thxxe"), 10, 3))
    assert b"\x1b[2;3H\x1b[0;37;40mxx" in changed
    assert b"hello" not in changed


def test_the_cursor_alone_moves() -> None:
    recorder = Recorder()
    recorder.show(text_frame(screen_of("abc", cursor=(0, 0)), 10, 3))
    assert recorder.show(text_frame(screen_of("abc", cursor=(2, 0)), 10, 3)) == b"\x1b[0m\x1b[1;3H\x1b[?25h"
    assert recorder.show(text_frame(screen_of("abc"), 10, 3)) == b"\x1b[0m\x1b[?25l"


def test_colours_are_the_terminals() -> None:
    cell = Cell("x", 12, 1, True, False)  # light red on blue
    frame = text_frame(TextScreen(1, 1, (cell,), None, COLOURS), 2, 1)
    assert frame.rows == [[("x", "0;5;91;44"), BLANK]]


def test_a_small_terminal_shows_where_the_cursor_is() -> None:
    lines = [f"line {number}" for number in range(25)]
    frame = text_frame(screen_of(*lines, cursor=(3, 20)), 6, 10)
    shown = ["".join(sign for sign, _ in row) for row in frame.rows]
    assert shown == [line[:6] for line in lines[11:21]]
    assert frame.cursor == (3, 9)


def test_a_big_terminal_is_blank_beside_the_screen() -> None:
    frame = text_frame(screen_of("ab", "cd"), 4, 3)
    assert ["".join(sign for sign, _ in row) for row in frame.rows] == ["ab  ", "cd  ", "    "]


def test_a_picture_has_two_pixels_a_character() -> None:
    red, blue = b"\xff\0\0", b"\0\0\xff"
    picture = Picture(2, 2, red * 2 + blue * 2)
    frame = picture_frame(picture, 2, 1, truecolour=True)
    assert frame.rows == [[("▀", "0;38;2;255;0;0;48;2;0;0;255")] * 2]
    assert picture_frame(picture, 2, 1, truecolour=False).rows[0][0] == ("▀", "0;38;5;196;48;5;21")


@pytest.mark.parametrize("size", [(1, 1), (640, 400), (8, 4000), (4000, 8)])
def test_any_picture_fits(size: tuple[int, int]) -> None:
    picture = Picture(*size, bytes(3 * size[0] * size[1]))
    for columns, rows in ((80, 25), (1, 1), (200, 5)):
        frame = picture_frame(picture, columns, rows, truecolour=True)
        assert [len(row) for row in frame.rows] == [columns] * rows


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[list[str]]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    command = ["tmux", "-u", "-S", str(tmp_path / "socket"), "-f", "/dev/null"]
    yield command
    subprocess.run([*command, "kill-server"], check=False, capture_output=True)


def test_a_terminal_emulator_agrees(tmux: list[str], tmp_path: Path) -> None:
    recorder = Recorder()
    first = [f"{number:02} ╔═║ {'x' * number}" for number in range(25)]
    second = [line.replace("x", "yz", 1)[:40] if number % 3 else line for number, line in enumerate(first)]
    output = recorder.show(text_frame(screen_of(*(line.ljust(80) for line in first)), 80, 24))
    output += recorder.show(
        text_frame(screen_of(*(line.ljust(80) for line in second), cursor=(5, 24)), 80, 24)
    )
    (tmp_path / "output").write_bytes(output + b"\x1b]2;painted\x07")
    show = f"cat {tmp_path}/output; sleep 60"
    subprocess.run([*tmux, "new-session", "-d", "-x", "80", "-y", "24", show], check=True)
    subprocess.run([*tmux, "set", "status", "off"], check=True)
    title: list[str] = [*tmux, "display", "-p", "#{pane_title}"]
    deadline = time.monotonic() + 20
    while "painted" not in subprocess.run(title, capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline, "tmux shows nothing"
        time.sleep(0.05)
    seen = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True).stdout
    assert seen.splitlines() == [line.rstrip() for line in second[1:]]
