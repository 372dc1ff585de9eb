"""A PS/2 keyboard: commands from the controller, codes of keys in three sets.

Reference: IBM PS/2 Hardware Interface Technical Reference (1990), Keyboards, "Commands from the System".
"""

from __future__ import annotations

from typing import Any, Final

from sublet.devices.legacy.keys import EXTENDED, KEYS, TRANSLATION, Key

QUEUE_LIMIT: Final = 256
"""Bytes kept for a guest that does not read; keys beyond are lost as from a full keyboard."""
ACK, RESEND, ECHO, SELF_TEST_PASSED = 0xFA, 0xFE, 0xEE, 0xAA
IDENTITY: Final = bytes((0xAB, 0x83))
RELEASE: Final = 0xF0
_DEFAULT_SET: Final = 2
_DEFAULT_RATE: Final = 0x2B
"""10.9 keys a second after half a second."""

_SET_LEDS, _SET_CODES, _SET_RATE = 0xED, 0xF0, 0xF3
_WITH_ARGUMENT: Final = (_SET_LEDS, _SET_CODES, _SET_RATE, 0xFB, 0xFC, 0xFD)
_WITHOUT_EFFECT: Final = (0xF7, 0xF8, 0xF9, 0xFA)
"""Set 3's kinds of keys: all make and break here, as drivers set them anyway."""

_PAUSE_SET2: Final = bytes.fromhex("e11477e1f014f077")
_BREAK_SET2: Final = bytes.fromhex("e07ee0f07e")
_SYSRQ: Final = Key(0x84, 0x57)


class Keyboard:
    """The device. Callers hold the controller's lock. There is no typematic repetition: hosts repeat keys."""

    def __init__(self) -> None:
        self._queue = bytearray()
        self.reset()

    def reset(self) -> None:
        """Power-on state, silent: the self-test's result was lost before anybody listened."""
        self._queue.clear()
        self._argument_of = 0
        self._last = 0
        self._held: set[str] = set()
        self._set_defaults()
        self.leds = 0
        """Scroll lock in bit 0, num lock in bit 1, caps lock in bit 2."""

    def _set_defaults(self) -> None:
        self._set = _DEFAULT_SET
        self._rate = _DEFAULT_RATE
        self._scanning = True

    # Controller side

    @property
    def pending(self) -> bool:
        """Whether a byte waits for the controller."""
        return bool(self._queue)

    def take(self) -> int:
        """The next byte; ``pending`` is true."""
        self._last = self._queue.pop(0)
        return self._last

    def write(self, value: int) -> None:
        """A byte from the system: a command, or the argument of the one before."""
        command, self._argument_of = self._argument_of, 0
        if command and value < 0x80:
            self._finish(command, value)
        elif value in _WITH_ARGUMENT:
            self._argument_of = value
            self._answer(ACK)
        else:
            self._obey(value)

    def _finish(self, command: int, argument: int) -> None:
        self._answer(ACK)
        if command == _SET_LEDS:
            self.leds = argument & 7
        elif command == _SET_RATE:
            self._rate = argument
        elif command == _SET_CODES and argument == 0:
            self._answer(self._set)
        elif command == _SET_CODES and argument <= 3:
            self._set = argument

    def _obey(self, command: int) -> None:
        if command == ECHO:
            self._answer(ECHO)
        elif command == 0xF2:
            self._answer(ACK, *IDENTITY)
        elif command in (0xF4, 0xF5, 0xF6):
            self._queue.clear()
            if command != 0xF4:
                self._set_defaults()
            self._scanning = command != 0xF5
            self._answer(ACK)
        elif command == 0xFE:
            self._answer(self._last)
        elif command == 0xFF:
            self.reset()
            self._answer(ACK, SELF_TEST_PASSED)
        else:
            self._answer(ACK if command in _WITHOUT_EFFECT else RESEND)

    def _answer(self, *values: int) -> None:
        if len(self._queue) + len(values) <= QUEUE_LIMIT:
            self._queue += bytes(values)

    # User's side

    def press(self, name: str) -> bool:
        """Push a key down; pushing it again while it is down repeats it.

        Returns:
            False when the key was lost: the guest has stopped the keyboard, or reads nothing.
        """
        self._held.add(name)
        return self._send(self._make(name))

    def release(self, name: str) -> bool:
        """Let a key go; see `press`. A key that is not down stays so."""
        if name not in self._held:
            return True
        self._held.discard(name)
        return self._send(self._break(name))

    def release_all(self) -> None:
        """Let go of whatever is down."""
        for name in sorted(self._held):
            self.release(name)

    def _send(self, codes: bytes) -> bool:
        if not self._scanning or len(self._queue) + len(codes) > QUEUE_LIMIT:
            return False
        self._queue += codes
        return True

    def _make(self, name: str) -> bytes:
        if self._set == 3:
            return bytes((KEYS[name].set3,)) if KEYS[name].set3 else b""
        return self._in_set(self._make_in_set_2(name))

    def _break(self, name: str) -> bytes:
        if self._set == 3:
            return bytes((RELEASE, KEYS[name].set3)) if KEYS[name].set3 else b""
        return self._in_set(self._break_in_set_2(name))

    def _in_set(self, codes: bytes) -> bytes:
        return translated(codes) if self._set == 1 else codes

    def _make_in_set_2(self, name: str) -> bytes:
        if name == "pause":
            return _BREAK_SET2 if self._is_down("ctrl") else _PAUSE_SET2
        if name == "print" and not self._is_down("alt"):
            return bytes((EXTENDED, 0x12, EXTENDED, 0x7C))
        key = _SYSRQ if name == "print" else KEYS[name]
        return bytes((EXTENDED, key.set2) if key.extended else (key.set2,))

    def _break_in_set_2(self, name: str) -> bytes:
        if name == "pause":
            return b""
        if name == "print" and not self._is_down("alt"):
            return bytes((EXTENDED, RELEASE, 0x7C, EXTENDED, RELEASE, 0x12))
        key = _SYSRQ if name == "print" else KEYS[name]
        return bytes((EXTENDED, RELEASE, key.set2) if key.extended else (RELEASE, key.set2))

    def _is_down(self, name: str) -> bool:
        return name in self._held or f"{name}_r" in self._held

    # Lifecycle

    def save_state(self) -> dict[str, Any]:
        """What the guest set, and what it has not read."""
        return {
            "queue": bytes(self._queue),
            "held": sorted(self._held),
            **{name: getattr(self, name) for name in _STATE_FIELDS},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._queue = bytearray(state["queue"])
        self._held = set(state["held"])
        for name in _STATE_FIELDS:
            setattr(self, name, state[name])


_STATE_FIELDS = ("leds", "_argument_of", "_last", "_set", "_rate", "_scanning")


def translated(codes: bytes) -> bytes:
    """Set 2 turned into set 1: a release prefix becomes bit 7 of the next byte."""
    result, released = bytearray(), 0
    for code in codes:
        if code == RELEASE:
            released = 0x80
        else:
            result.append(TRANSLATION[code] | released)
            released = 0
    return bytes(result)
