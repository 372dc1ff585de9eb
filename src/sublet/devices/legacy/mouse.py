"""A PS/2 mouse with wheel and five buttons, as drivers find them by the IntelliMouse knocks.

Reference: IBM PS/2 Hardware Interface Technical Reference (1990), Mouse; Microsoft "Windows and the
5-Button Wheel Mouse" (2001).
"""

from __future__ import annotations

from typing import Any, Final

QUEUE_LIMIT: Final = 256
"""Bytes kept for a guest that does not read; movement beyond adds up instead."""
ACK, RESEND, SELF_TEST_PASSED = 0xFA, 0xFE, 0xAA

PLAIN, WHEEL, FIVE_BUTTONS = 0, 3, 4
"""Identities."""
_KNOCKS: Final = {(200, 100, 80): WHEEL, (200, 200, 80): FIVE_BUTTONS}
"""Three sample rates in a row that change what the mouse is."""
_SET_RESOLUTION, _SET_RATE = 0xE8, 0xF3
_WRAP_ON, _WRAP_OFF, _RESET = 0xEE, 0xEC, 0xFF
_SCALING_2_TO_1, _REPORTING, _REMOTE = 0x10, 0x20, 0x40


class Mouse:
    """The device. Callers hold the controller's lock."""

    def __init__(self) -> None:
        self._queue = bytearray()
        self.reset()

    def reset(self) -> None:
        """Power-on state, silent."""
        self._queue.clear()
        self._identity = PLAIN
        self._argument_of = 0
        self._last = 0
        self._wrap = False
        self._rates = (0, 0, 0)
        self._set_defaults()
        self._moved = [0, 0, 0]
        self._buttons = 0
        self._reported_buttons = 0

    def _set_defaults(self) -> None:
        self._flags = 0
        self._resolution = 2
        self._rate = 100

    # Controller side

    @property
    def pending(self) -> bool:
        """Whether a byte waits for the controller."""
        return bool(self._queue)

    def take(self) -> int:
        """The next byte; ``pending`` is true."""
        self._last = self._queue.pop(0)
        if not self._queue:
            self._report()
        return self._last

    def write(self, value: int) -> None:
        """A byte from the system: a command, an argument, or anything while wrapping."""
        if self._wrap and value not in (_WRAP_OFF, _RESET):
            self._answer(value)
            return
        command, self._argument_of = self._argument_of, 0
        if command:
            self._finish(command, value)
        elif value in (_SET_RESOLUTION, _SET_RATE):
            self._argument_of = value
            self._answer(ACK)
        else:
            self._obey(value)

    def _finish(self, command: int, argument: int) -> None:
        if command == _SET_RESOLUTION:
            self._resolution = argument & 3
        else:
            self._rate = argument
            self._rates = (*self._rates[1:], argument)
            wanted = _KNOCKS.get(self._rates, PLAIN)
            if wanted == WHEEL or (wanted == FIVE_BUTTONS and self._identity == WHEEL):
                self._identity = wanted
        self._answer(ACK)

    def _obey(self, command: int) -> None:
        if command == _RESET:
            self.reset()
            self._answer(ACK, SELF_TEST_PASSED, PLAIN)
        elif command == 0xF2:
            self._answer(ACK, self._identity)
        elif command == 0xE9:
            buttons = self._buttons
            swapped = (buttons & 1) << 2 | buttons >> 2 & 1 | (buttons & 2)
            self._answer(ACK, self._flags | swapped, self._resolution, self._rate)
        elif command == 0xEB:
            self._answer(ACK, *self._packet())
        elif command == 0xFE:
            self._answer(self._last)
        elif command == 0xF6:
            self._set_defaults()
            self._answer(ACK)
        else:
            self._switch(command)

    def _switch(self, command: int) -> None:
        """Commands that turn something on or off."""
        if command in _SWITCHES:
            off, on = _SWITCHES[command]
            self._flags = self._flags & ~off | on
        elif command in (_WRAP_ON, _WRAP_OFF):
            self._wrap = command == _WRAP_ON
        else:
            self._answer(RESEND)
            return
        self._answer(ACK)

    def _answer(self, *values: int) -> None:
        if len(self._queue) + len(values) <= QUEUE_LIMIT:
            self._queue += bytes(values)

    # User's side

    def move(self, right: int, up: int, wheel: int = 0) -> None:
        """Move by counts; ``wheel`` is positive towards the user."""
        for axis, delta in enumerate((right, up, wheel)):
            self._moved[axis] = max(-0x7FFF, min(self._moved[axis] + delta, 0x7FFF))
        self._report()

    def set_buttons(self, buttons: int) -> None:
        """Left in bit 0, right 1, middle 2, then the two at the sides."""
        self._buttons = buttons & 0x1F
        self._report()

    def _report(self) -> None:
        """Send a packet if the guest wants them, it has read the last one, and there is news."""
        news = any(self._moved) or self._buttons != self._reported_buttons
        if news and self._flags & (_REPORTING | _REMOTE) == _REPORTING and not self._queue:
            self._answer(*self._packet())

    def _packet(self) -> tuple[int, ...]:
        """Three bytes, or four with a wheel; what does not fit is for the next packet."""
        right, up = (self._take(axis, 0xFF) for axis in (0, 1))
        self._reported_buttons = self._buttons
        first = 0x08 | self._buttons & 7 | (right < 0) << 4 | (up < 0) << 5
        packet = (first, right & 0xFF, up & 0xFF)
        if self._identity == PLAIN:
            self._moved[2] = 0
            return packet
        wheel = self._take(2, 7) & 0xFF
        if self._identity == FIVE_BUTTONS:
            wheel = wheel & 0x0F | (self._buttons & 0x18) << 1
        return (*packet, wheel)

    def _take(self, axis: int, limit: int) -> int:
        taken = max(-limit, min(self._moved[axis], limit))
        self._moved[axis] -= taken
        return taken

    # Lifecycle

    def save_state(self) -> dict[str, Any]:
        """What the guest set, and what it has not read."""
        return {
            "queue": bytes(self._queue),
            "moved": list(self._moved),
            "rates": list(self._rates),
            **{name: getattr(self, name) for name in _STATE_FIELDS},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._queue = bytearray(state["queue"])
        self._moved = list(state["moved"])
        first, second, third = state["rates"]
        self._rates = (first, second, third)
        for name in _STATE_FIELDS:
            setattr(self, name, state[name])


_STATE_FIELDS = (
    "_identity",
    "_argument_of",
    "_last",
    "_wrap",
    "_flags",
    "_resolution",
    "_rate",
    "_buttons",
    "_reported_buttons",
)
_SWITCHES: Final = {
    0xE6: (_SCALING_2_TO_1, 0),
    0xE7: (0, _SCALING_2_TO_1),
    0xEA: (_REMOTE, 0),
    0xF0: (0, _REMOTE),
    0xF4: (0, _REPORTING),
    0xF5: (_REPORTING, 0),
}
"""Bits of the status byte that a command clears and sets."""
