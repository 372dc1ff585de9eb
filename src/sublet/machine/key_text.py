"""Text with names of keys in it, as a user writes what is to be typed: ``root{enter}{ctrl-alt-delete}``."""

from __future__ import annotations

from typing import Final

from sublet.devices.legacy import KEYS
from sublet.errors import UsageError

Chord = tuple[str, ...]
"""Keys that are down together, by name, in the order in which they go down."""

TEXT_LIMIT: Final = 65536
"""Characters that one call may type."""

ALIASES: Final = {
    "return": "enter",
    "escape": "esc",
    "del": "delete",
    "ins": "insert",
    "pgup": "pageup",
    "pgdn": "pagedown",
    "bksp": "backspace",
    "control": "ctrl",
    "altgr": "alt_r",
    "win": "meta",
    "super": "meta",
    "prtsc": "print",
    "sysrq": "print",
    "break": "pause",
    "minus": "-",
}
"""Other names that people use."""

_PLAIN: Final = "`1234567890-=qwertyuiop[]\\asdfghjkl;'zxcvbnm,./"
_SHIFTED: Final = '~!@#$%^&*()_+QWERTYUIOP{}|ASDFGHJKL:"ZXCVBNM<>?'
US_LAYOUT: Final[dict[str, Chord]] = {
    **{character: (character,) for character in _PLAIN},
    **{shifted: ("shift", plain) for plain, shifted in zip(_PLAIN, _SHIFTED, strict=True)},
    " ": ("space",),
    "\n": ("enter",),
    "\r": ("enter",),
    "\t": ("tab",),
    "\b": ("backspace",),
}
"""Which keys make a character where the guest has a US keyboard."""


def parse_key_text(text: str) -> list[Chord]:
    """What to press, one chord after the other.

    Characters are typed as on a US keyboard. ``{name}`` is a key, ``{name-name}`` several at once;
    ``{{`` and ``}}`` are the braces themselves.

    Raises:
        UsageError: A character that a US keyboard does not have, a name of no key, a brace alone.
    """
    if len(text) > TEXT_LIMIT:
        raise UsageError(f"{len(text)} characters are too many to type at once: at most {TEXT_LIMIT}")
    chords = []
    at = 0
    while at < len(text):
        character = text[at]
        if text[at : at + 2] in ("{{", "}}"):
            chords.append(US_LAYOUT[character])
            at += 2
        elif character == "{":
            end = text.find("}", at)
            if end < 0:
                raise UsageError("a '{' without '}'", remedy="Write '{{' for the brace itself.")
            chords.append(_chord(text[at + 1 : end]))
            at = end + 1
        else:
            chords.append(_character(character))
            at += 1
    return chords


def _character(character: str) -> Chord:
    if character == "}":
        raise UsageError("a '}' without '{'", remedy="Write '}}' for the brace itself.")
    chord = US_LAYOUT.get(character)
    if chord is None:
        raise UsageError(
            f"a US keyboard has no {character!r}",
            remedy="Only the layout 'us' is known; name keys as in {alt_r-e} for others.",
        )
    return chord


def _chord(names: str) -> Chord:
    """Keys of ``ctrl-alt-delete``; a minus at the end is the key itself."""
    lowered = names.lower()
    words = [*lowered[:-1].rstrip("-").split("-"), "-"] if lowered.endswith("-") else lowered.split("-")
    if lowered == "-":
        words = ["-"]
    keys = tuple(ALIASES.get(word, word) for word in words)
    for key, word in zip(keys, words, strict=True):
        if key not in KEYS:
            raise UsageError(
                f"there is no key {word!r}", remedy="docs/guide/screen.md lists them; `{{` types a brace."
            )
    return keys
