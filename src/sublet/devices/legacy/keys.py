"""The keys of a 105-key keyboard: their names here, and their codes in sets 2 and 3.

Names are those of a US keyboard's legends; the codes are of places, whatever is printed there.
Set 1 is what the controller's translation makes of set 2.

Reference: IBM PS/2 Hardware Interface Technical Reference (1990), Keyboards, "Scan Code Sets";
Microsoft "Keyboard Scan Code Specification" 1.3a.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

EXTENDED: Final = 0xE0


@dataclass(frozen=True)
class Key:
    """Codes of one key; in set 2 after ``E0`` where ``extended``. ``set3`` is 0 where set 3 has none."""

    set2: int
    set3: int
    extended: bool = False


def _same_in_both(rows: dict[str, str]) -> dict[str, Key]:
    """Keys by name from rows of names and of hexadecimal codes, which are the same in both sets."""
    return {
        name: Key(code, code)
        for names, codes in rows.items()
        for name, code in zip(names.split(), bytes.fromhex(codes), strict=True)
    }


KEYS: Final[dict[str, Key]] = {
    **_same_in_both(
        {
            "` 1 2 3 4 5 6 7 8 9 0 - =": "0e 16 1e 26 25 2e 36 3d 3e 46 45 4e 55",
            "q w e r t y u i o p [ ]": "15 1d 24 2d 2c 35 3c 43 44 4d 54 5b",
            "a s d f g h j k l ; '": "1c 1b 23 2b 34 33 3b 42 4b 4c 52",
            "z x c v b n m , . /": "1a 22 21 2a 32 31 3a 41 49 4a",
            "backspace tab enter shift shift_r space": "66 0d 5a 12 59 29",
            "kp_0 kp_1 kp_2 kp_3 kp_4 kp_5 kp_6 kp_7 kp_8 kp_9": "70 69 72 7a 6b 73 74 6c 75 7d",
            "kp_period": "71",
        }
    ),
    "\\": Key(0x5D, 0x5C),
    "less": Key(0x61, 0x13),  # the 102nd key, between shift and z
    "esc": Key(0x76, 0x08),
    "f1": Key(0x05, 0x07),
    "f2": Key(0x06, 0x0F),
    "f3": Key(0x04, 0x17),
    "f4": Key(0x0C, 0x1F),
    "f5": Key(0x03, 0x27),
    "f6": Key(0x0B, 0x2F),
    "f7": Key(0x83, 0x37),
    "f8": Key(0x0A, 0x3F),
    "f9": Key(0x01, 0x47),
    "f10": Key(0x09, 0x4F),
    "f11": Key(0x78, 0x56),
    "f12": Key(0x07, 0x5E),
    "capslock": Key(0x58, 0x14),
    "numlock": Key(0x77, 0x76),
    "scrolllock": Key(0x7E, 0x5F),
    "ctrl": Key(0x14, 0x11),
    "ctrl_r": Key(0x14, 0x58, extended=True),
    "alt": Key(0x11, 0x19),
    "alt_r": Key(0x11, 0x39, extended=True),
    "meta": Key(0x1F, 0x8B, extended=True),
    "meta_r": Key(0x27, 0x8C, extended=True),
    "menu": Key(0x2F, 0x8D, extended=True),
    "insert": Key(0x70, 0x67, extended=True),
    "delete": Key(0x71, 0x64, extended=True),
    "home": Key(0x6C, 0x6E, extended=True),
    "end": Key(0x69, 0x65, extended=True),
    "pageup": Key(0x7D, 0x6F, extended=True),
    "pagedown": Key(0x7A, 0x6D, extended=True),
    "up": Key(0x75, 0x63, extended=True),
    "down": Key(0x72, 0x60, extended=True),
    "left": Key(0x6B, 0x61, extended=True),
    "right": Key(0x74, 0x6A, extended=True),
    "kp_divide": Key(0x4A, 0x4A, extended=True),
    "kp_multiply": Key(0x7C, 0x7E),
    "kp_minus": Key(0x7B, 0x4E),
    "kp_plus": Key(0x79, 0x7C),
    "kp_enter": Key(0x5A, 0x79, extended=True),
    "print": Key(0x7C, 0x57, extended=True),
    "pause": Key(0x77, 0x62),
    "power": Key(0x37, 0, extended=True),
    "sleep": Key(0x3F, 0, extended=True),
    "wake": Key(0x5E, 0, extended=True),
}
"""Every key, by name."""

_CONTROLLER_ROWS: Final = """
ff 43 41 3f 3d 3b 3c 58 64 44 42 40 3e 0f 29 59 65 38 2a 70 1d 10 02 5a 66 71 2c 1f 1e 11 03 5b
67 2e 2d 20 12 05 04 5c 68 39 2f 21 14 13 06 5d 69 31 30 23 22 15 07 5e 6a 72 32 24 16 08 09 5f
6b 33 25 17 18 0b 0a 60 6c 34 35 26 27 19 0c 61 6d 73 28 74 1a 0d 62 6e 3a 36 1c 1b 75 2b 63 76
55 56 77 78 79 7a 0e 7b 7c 4f 7d 4b 47 7e 7f 6f 52 53 50 4c 4d 48 01 45 57 4e 51 4a 37 49 46 54
80 81 82 41 54"""
TRANSLATION: Final = bytes.fromhex(_CONTROLLER_ROWS) + bytes(range(0x85, 0x100))
"""Set 1 of each byte of set 2, as the keyboard controller has it in its ROM."""
