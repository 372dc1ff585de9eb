"""Bytes of a terminal as keys of a PC."""

from __future__ import annotations

import pytest

from sublet.cli.terminal_keys import TerminalKeys
from sublet.devices.legacy import KEYS


@pytest.mark.parametrize(
    ("data", "chords"),
    [
        (b"aB\r", [("a",), ("shift", "b"), ("enter",)]),
        (b"\x7f\t\x08", [("backspace",), ("tab",), ("backspace",)]),
        (b"\x03\x1c\x00", [("ctrl", "c"), ("ctrl", "\\"), ("ctrl", "space")]),
        (b"\x1b", [("esc",)]),
        (b"\x1b\x1b[A", [("esc",), ("up",)]),
        (b"\x1b[A\x1bOB\x1b[1;5C\x1b[D", [("up",), ("down",), ("ctrl", "right"), ("left",)]),
        (b"\x1bOP\x1b[15~\x1b[24;2~\x1b[[C", [("f1",), ("f5",), ("shift", "f12"), ("f3",)]),
        (b"\x1b[3~\x1b[Z\x1b[5~", [("delete",), ("shift", "tab"), ("pageup",)]),
        (b"\x1bx\x1bF", [("alt", "x"), ("alt", "shift", "f")]),
        ("é→a".encode(), [("a",)]),
        (b"\x1b[999~\x1b[?25hq", [("alt", "["), ("shift", "/"), ("2",), ("5",), ("h",), ("q",)]),
    ],
)
def test_keys(data: bytes, chords: list[tuple[str, ...]]) -> None:
    assert TerminalKeys().feed(data) == chords


def test_a_sequence_in_two_pieces() -> None:
    keys = TerminalKeys()
    assert keys.feed(b"x\x1b[1;") == [("x",)]
    assert keys.feed(b"2A") == [("shift", "up")]


def test_every_byte_and_pair_is_bearable() -> None:
    for first in range(256):
        for chord in TerminalKeys().feed(bytes((0x1B, first, 0x5B, 0xFF))):
            assert set(chord) <= set(KEYS)
