"""The keyboard controller: ports 60h and 64h, keyboard and mouse behind them, A20 and reset.

Reference: IBM PS/2 Hardware Interface Technical Reference (1990), Keyboard and Auxiliary Device
Controller; Intel UPI-41AH/42AH data sheet for the pulse commands.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from sublet.devices.legacy.keyboard import RELEASE, Keyboard
from sublet.devices.legacy.keys import TRANSLATION
from sublet.devices.legacy.mouse import Mouse
from sublet.hw import IrqLine

DATA_PORT, COMMAND_PORT = 0x60, 0x64
KEYBOARD_GSI, MOUSE_GSI = 1, 12

STATUS_FULL, STATUS_SYSTEM, STATUS_COMMAND = 0x01, 0x04, 0x08
STATUS_UNLOCKED, STATUS_MOUSE = 0x10, 0x20
CONFIG_KEYBOARD_IRQ, CONFIG_MOUSE_IRQ = 0x01, 0x02
CONFIG_KEYBOARD_OFF, CONFIG_MOUSE_OFF, CONFIG_TRANSLATE = 0x10, 0x20, 0x40
OUTPUT_NOT_RESET, OUTPUT_A20 = 0x01, 0x02
_OUTPUT_KEYBOARD_FULL, _OUTPUT_MOUSE_FULL = 0x10, 0x20
_OUTPUT_IDLE_LINES: Final = 0xCC
"""Clock and data of both devices, high while nobody talks."""
_INPUT_PORT: Final = 0x80
"""The keyboard is not locked."""

_READ_CONFIG, _WRITE_CONFIG = 0x20, 0x60
_WRITE_OUTPUT, _AS_KEYBOARD, _AS_MOUSE, _TO_MOUSE = 0xD1, 0xD2, 0xD3, 0xD4
_WITH_ARGUMENT: Final = (_WRITE_CONFIG, _WRITE_OUTPUT, _AS_KEYBOARD, _AS_MOUSE, _TO_MOUSE)
_ANSWERS: Final = {0xAA: 0x55, 0xAB: 0x00, 0xA9: 0x00, 0xC0: _INPUT_PORT}
"""Commands that only answer; AAh (self-test) also sets the system flag."""
_CONFIG_BITS: Final = {
    0xA7: (0, CONFIG_MOUSE_OFF),
    0xA8: (CONFIG_MOUSE_OFF, 0),
    0xAD: (0, CONFIG_KEYBOARD_OFF),
    0xAE: (CONFIG_KEYBOARD_OFF, 0),
}
"""Commands that clear and set bits of the configuration byte."""


class I8042:
    """The controller with its two devices, as port 60h; ``command_port`` is 64h. Any thread.

    The output buffer has one byte; who filled it decides which interrupt is raised, and the next byte
    comes only when this one was read. Bad input, by design: unknown commands are ignored.

    Args:
        keyboard_irq: GSI 1.
        mouse_irq: GSI 12.
        on_a20: Called with the state of the A20 gate when it changes; open at power-on.
        on_reset: Called when the guest pulls the reset line.
    """

    def __init__(
        self,
        keyboard_irq: IrqLine,
        mouse_irq: IrqLine,
        on_a20: Callable[[bool], None],
        on_reset: Callable[[], None],
    ) -> None:
        self._keyboard_irq = keyboard_irq
        self._mouse_irq = mouse_irq
        self._on_a20 = on_a20
        self._on_reset = on_reset
        self.command_port = _CommandPort(self)
        self._lock = threading.Lock()
        self._keyboard = Keyboard()
        self._mouse = Mouse()
        self._set_power_on_values()

    def _set_power_on_values(self) -> None:
        self._status = STATUS_UNLOCKED
        self._config = CONFIG_KEYBOARD_IRQ | CONFIG_MOUSE_IRQ
        self._output_port = OUTPUT_NOT_RESET | OUTPUT_A20
        self._data = 0
        self._argument_of = 0
        self._released = False

    # Guest side

    def pio_read(self, offset: int, size: int) -> int:
        """Port 60h: take the byte in the output buffer; the last one again when there is none."""
        with self._lock:
            value = self._data
            if self._status & STATUS_FULL:
                self._status &= ~(STATUS_FULL | STATUS_MOUSE)
                self._drive_lines()
                self._fill()
            return value

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Port 60h: the argument of a command, or a byte for the keyboard."""
        with self._lock:
            self._status &= ~STATUS_COMMAND
            effect = self._write_data(value & 0xFF)
            self._fill()
        if effect is not None:
            effect()

    def read_status(self) -> int:
        """Port 64h: what is in the output buffer."""
        return self._status

    def write_command(self, value: int) -> None:
        """Port 64h: a command to the controller itself."""
        with self._lock:
            self._status |= STATUS_COMMAND
            effect = self._command(value)
            self._fill()
        if effect is not None:
            effect()

    def _command(self, command: int) -> Callable[[], None] | None:
        """Carry out a command; returns what is to be done once the lock is free."""
        self._argument_of = 0
        if command in _WITH_ARGUMENT:
            self._argument_of = command
        elif command in _CONFIG_BITS:
            cleared, set_ = _CONFIG_BITS[command]
            self._config = self._config & ~cleared | set_
        elif command == _READ_CONFIG:
            self._answer(self._config)
        elif command in _ANSWERS:
            if command == 0xAA:
                self._status |= STATUS_SYSTEM
            self._answer(_ANSWERS[command])
        elif command == 0xD0:
            self._answer(self._read_output_port())
        elif command in (0xDD, 0xDF):
            return self._set_output_port(self._output_port & ~OUTPUT_A20 | (command & OUTPUT_A20))
        elif command & 0xF1 == 0xF0:
            return self._on_reset
        return None

    def _write_data(self, value: int) -> Callable[[], None] | None:
        command, self._argument_of = self._argument_of, 0
        if command == _WRITE_CONFIG:
            self._config = value & ~0x88
            self._status = self._status & ~STATUS_SYSTEM | value & STATUS_SYSTEM
            self._drive_lines()
        elif command == _WRITE_OUTPUT:
            return self._set_output_port(value)
        elif command in (_AS_KEYBOARD, _AS_MOUSE):
            self._answer(value, as_mouse=command == _AS_MOUSE)
        elif command == _TO_MOUSE:
            self._config &= ~CONFIG_MOUSE_OFF
            self._mouse.write(value)
        else:
            # The keyboard's clock is let go to send, and stays so.
            self._config &= ~CONFIG_KEYBOARD_OFF
            self._keyboard.write(value)
        return None

    def _read_output_port(self) -> int:
        full = 0
        if self._status & STATUS_FULL:
            full = _OUTPUT_MOUSE_FULL if self._status & STATUS_MOUSE else _OUTPUT_KEYBOARD_FULL
        return self._output_port | _OUTPUT_IDLE_LINES | full

    def _set_output_port(self, value: int) -> Callable[[], None] | None:
        changed = value ^ self._output_port
        self._output_port = value & (OUTPUT_NOT_RESET | OUTPUT_A20)
        if not value & OUTPUT_NOT_RESET:
            return self._on_reset
        if changed & OUTPUT_A20:
            return lambda: self._on_a20(bool(value & OUTPUT_A20))
        return None

    # The output buffer

    def _answer(self, value: int, *, as_mouse: bool = False) -> None:
        """The controller's own byte replaces what is there: the guest had its time to read."""
        self._status &= ~(STATUS_FULL | STATUS_MOUSE)
        self._drive_lines()
        self._put(value, as_mouse=as_mouse)

    def _put(self, value: int, *, as_mouse: bool) -> None:
        self._data = value
        self._status |= STATUS_FULL | (STATUS_MOUSE if as_mouse else 0)
        self._drive_lines()

    def _fill(self) -> None:
        """Move the next byte of a device into an empty output buffer; the keyboard goes first."""
        while not self._status & STATUS_FULL:
            if self._keyboard.pending and not self._config & CONFIG_KEYBOARD_OFF:
                code = self._through_translation(self._keyboard.take())
                if code is not None:
                    self._put(code, as_mouse=False)
            elif self._mouse.pending and not self._config & CONFIG_MOUSE_OFF:
                self._put(self._mouse.take(), as_mouse=True)
            else:
                return

    def _through_translation(self, code: int) -> int | None:
        """Set 1 for what is set 2, if the guest wants that; None for a prefix that only marks the next."""
        if not self._config & CONFIG_TRANSLATE:
            return code
        if code == RELEASE:
            self._released = True
            return None
        released, self._released = self._released, False
        return TRANSLATION[code] | (0x80 if released else 0)

    def _drive_lines(self) -> None:
        full, mouse = self._status & STATUS_FULL, self._status & STATUS_MOUSE
        self._keyboard_irq.set_level(bool(full and not mouse and self._config & CONFIG_KEYBOARD_IRQ))
        self._mouse_irq.set_level(bool(full and mouse and self._config & CONFIG_MOUSE_IRQ))

    # User's side

    def press(self, key: str) -> bool:
        """Push a key of `sublet.devices.legacy.keys` down; False when the guest loses it."""
        with self._lock:
            taken = self._keyboard.press(key)
            self._fill()
            return taken

    def release(self, key: str) -> bool:
        """Let a key go; False when the guest loses it."""
        with self._lock:
            taken = self._keyboard.release(key)
            self._fill()
            return taken

    @property
    def keys_waiting(self) -> bool:
        """Whether the guest has codes of keys left to read."""
        with self._lock:
            return self._keyboard.pending or self._status & (STATUS_FULL | STATUS_MOUSE) == STATUS_FULL

    @property
    def leds(self) -> int:
        """Scroll lock in bit 0, num lock in bit 1, caps lock in bit 2."""
        return self._keyboard.leds

    def move_mouse(self, right: int, up: int, wheel: int = 0) -> None:
        """See `Mouse.move`."""
        with self._lock:
            self._mouse.move(right, up, wheel)
            self._fill()

    def set_mouse_buttons(self, buttons: int) -> None:
        """See `Mouse.set_buttons`."""
        with self._lock:
            self._mouse.set_buttons(buttons)
            self._fill()

    # Lifecycle

    def reset(self) -> None:
        """Power-on state of the controller and both devices; A20 is open."""
        with self._lock:
            self._set_power_on_values()
            self._keyboard.reset()
            self._mouse.reset()
            self._drive_lines()
        self._on_a20(True)

    def save_state(self) -> dict[str, Any]:
        """Registers, and both devices."""
        with self._lock:
            state: dict[str, Any] = {name: getattr(self, name) for name in _STATE_FIELDS}
            return state | {"keyboard": self._keyboard.save_state(), "mouse": self._mouse.save_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        with self._lock:
            for name in _STATE_FIELDS:
                setattr(self, name, state[name])
            self._keyboard.load_state(state["keyboard"])
            self._mouse.load_state(state["mouse"])
            self._drive_lines()
        self._on_a20(bool(self._output_port & OUTPUT_A20))


class _CommandPort:
    """Port 64h."""

    def __init__(self, controller: I8042) -> None:
        self._controller = controller

    def pio_read(self, offset: int, size: int) -> int:
        """The status."""
        return self._controller.read_status()

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """A command."""
        self._controller.write_command(value & 0xFF)


_STATE_FIELDS = ("_status", "_config", "_output_port", "_data", "_argument_of", "_released")
