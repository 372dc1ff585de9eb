"""What a terminal sends, as keys of a PC's keyboard.

Reference: xterm "XTerm Control Sequences" (patch 379) "PC-Style Function Keys"; Linux console_codes(4).
"""

from __future__ import annotations

import re
from typing import Final

from sublet.machine.key_text import US_LAYOUT, Chord

_SEQUENCE: Final = re.compile(rb"\x1b(?:\[\[([A-E])|\[([0-9;]*)([A-Za-z~])|O([A-Za-z]))")
_UNFINISHED: Final = re.compile(rb"\x1b(?:\[\[?[0-9;]*|O)\Z")

_BY_LETTER: Final = {
    **dict(zip("ABCDHF", ("up", "down", "right", "left", "home", "end"), strict=True)),
    **dict(zip("PQRS", ("f1", "f2", "f3", "f4"), strict=True)),
    "M": "kp_enter",
}
_BY_NUMBER: Final = {
    1: "home",
    2: "insert",
    3: "delete",
    4: "end",
    5: "pageup",
    6: "pagedown",
    7: "home",
    8: "end",
    **{number: f"f{index}" for index, number in enumerate((11, 12, 13, 14, 15), 1)},
    **{number: f"f{index}" for index, number in enumerate((17, 18, 19, 20, 21), 6)},
    23: "f11",
    24: "f12",
}
_MODIFIERS: Final = ("shift", "alt", "ctrl", "meta")
"""Bits of a sequence's second number, less one."""
_CONTROL_SIGNS: Final = {0x00: "space", 0x1C: "\\", 0x1D: "]", 0x1E: "6", 0x1F: "/"}


class TerminalKeys:
    """Turns what is read from a terminal into chords; keeps a sequence that is not complete yet."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Chord]:
        """The keys that ``data`` finishes. What no US keyboard has is left out."""
        data, self._rest = self._rest + data, b""
        chords: list[Chord] = []
        at = 0
        while at < len(data):
            if _UNFINISHED.match(data, at):
                self._rest = data[at:]
                break
            at, chord = _next(data, at)
            if chord:
                chords.append(chord)
        return chords


def _next(data: bytes, at: int) -> tuple[int, Chord]:
    """Where the next key ends, and its chord; an empty one for what is no key."""
    sequence = _SEQUENCE.match(data, at)
    if sequence is not None:
        return sequence.end(), _of_sequence(sequence)
    if data[at] != 0x1B:
        return _plain(data, at)
    if at + 1 == len(data) or data[at + 1] == 0x1B:
        return at + 1, ("esc",)
    end, chord = _plain(data, at + 1)
    return end, ("alt", *chord) if chord else ()


def _plain(data: bytes, at: int) -> tuple[int, Chord]:
    """A character, which may take several bytes of UTF-8, or a control character."""
    byte = data[at]
    if byte < 0x20 or byte == 0x7F:
        return at + 1, _of_control(byte)
    end = at + 1
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end += 1
    character = data[at:end].decode(errors="replace")
    return end, US_LAYOUT.get(character, ())


def _of_control(byte: int) -> Chord:
    if byte == 0x7F:
        return ("backspace",)
    if byte in (0x08, 0x09, 0x0D):
        return US_LAYOUT[chr(byte)]
    if byte in _CONTROL_SIGNS:
        return ("ctrl", _CONTROL_SIGNS[byte])
    return ("ctrl", chr(byte + 0x60))


def _of_sequence(sequence: re.Match[bytes]) -> Chord:
    linux, numbers, letter, application = (group.decode() if group else "" for group in sequence.groups())
    if linux:
        return (f"f{'ABCDE'.index(linux) + 1}",)
    parts = [int(part or 0) for part in numbers.split(";")] if numbers else []
    bits = parts[1] - 1 if len(parts) > 1 and 1 <= parts[1] <= 16 else 0
    held = tuple(name for bit, name in enumerate(_MODIFIERS) if bits >> bit & 1)
    if letter == "Z":
        return ("shift", "tab")
    key = _BY_NUMBER.get(parts[0] if parts else 0) if letter == "~" else _BY_LETTER.get(letter or application)
    return (*held, key) if key else ()
