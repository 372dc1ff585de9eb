"""The console on a pseudo-terminal and on pipes."""

from __future__ import annotations

import os
import pty
import termios
import threading
from collections.abc import Callable, Iterator

import pytest

from sublet.cli.terminal import RawTerminal, StreamConsole

LIMIT_S = 10.0


class Sink:
    """Takes input as a machine does, a bounded number of bytes at a time."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.data = b""
        self.changed = threading.Condition()

    def __call__(self, data: bytes) -> int:
        with self.changed:
            taken = data[: self.room]
            self.data += taken
            self.changed.notify_all()
            return len(taken)

    def wait(self, condition: Callable[[bytes], bool]) -> bytes:
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self.data), LIMIT_S), self.data[-100:]
            return self.data


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    user, ours = pty.openpty()
    yield user, ours
    os.close(user)
    os.close(ours)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for descriptor in (read, write):
        try:
            os.close(descriptor)
        except OSError:
            continue


def is_raw(descriptor: int) -> bool:
    return not termios.tcgetattr(descriptor)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


def test_a_terminal_is_raw_between_start_and_stop(terminal: tuple[int, int]) -> None:
    _, ours = terminal
    before = termios.tcgetattr(ours)
    console = StreamConsole(ours, ours, RawTerminal(ours))
    console.start(Sink())
    assert is_raw(ours)
    console.stop()
    console.stop()
    assert termios.tcgetattr(ours) == before


def test_control_bytes_reach_the_guest(terminal: tuple[int, int]) -> None:
    user, ours = terminal
    sink, console = Sink(), StreamConsole(ours, ours, RawTerminal(ours))
    console.start(sink)
    os.write(user, b"a\x03\x1a\x04\r\n\x13")
    assert sink.wait(lambda data: len(data) == 7) == b"a\x03\x1a\x04\r\n\x13"
    console.stop()


def test_the_escape_key_leaves_and_restores(terminal: tuple[int, int]) -> None:
    user, ours = terminal
    left = threading.Event()
    sink, console = Sink(), StreamConsole(ours, ours, RawTerminal(ours), left.set)
    console.start(sink)
    os.write(user, b"x\x1dy")
    assert left.wait(LIMIT_S)
    assert not is_raw(ours)
    assert sink.data == b"x"
    console.stop()


def test_pasted_text_is_not_lost_when_the_guest_is_slow(pipe: tuple[int, int]) -> None:
    read, write = pipe
    text = bytes(index % 251 for index in range(100_000))
    sink, console = Sink(room=1000), StreamConsole(read, write)
    console.start(sink)
    threading.Thread(target=lambda: os.write(write, text), daemon=True).start()
    assert sink.wait(lambda data: len(data) == len(text)) == text
    console.stop()


def test_pipes_pass_the_escape_byte(pipe: tuple[int, int]) -> None:
    read, write = pipe
    sink, console = Sink(), StreamConsole(read, write)
    console.start(sink)
    os.write(write, b"\x1d!")
    assert sink.wait(lambda data: len(data) == 2) == b"\x1d!"
    console.stop()


def test_closed_input_ends_input_only(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.close(write)
    out_read, out_write = os.pipe()
    console = StreamConsole(read, out_write)
    console.start(Sink())
    console.write(b"still here")
    assert os.read(out_read, 100) == b"still here"
    console.stop()
    os.close(out_read)
    os.close(out_write)


def test_a_gone_reader_leaves(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.close(read)
    left = threading.Event()
    console = StreamConsole(None, write, on_leave=left.set)
    console.write(b"nobody reads this")
    console.write(b"nor this")
    assert left.is_set()
    console.stop()


def test_a_slow_non_blocking_reader_gets_everything(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.set_blocking(write, False)
    text = b"0123456789" * 20_000
    received = bytearray()

    def drain() -> None:
        while len(received) < len(text):
            received.extend(os.read(read, 4096))

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    StreamConsole(None, write).write(text)
    reader.join(LIMIT_S)
    assert bytes(received) == text
