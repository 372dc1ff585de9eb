"""``--console vga``: the machine's screen in the terminal, and the terminal's keys on its keyboard."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

from sublet.cli.painter import Frame, Painter, picture_frame, text_frame
from sublet.cli.terminal import RawTerminal, StreamConsole
from sublet.cli.terminal_keys import TerminalKeys
from sublet.devices.vga import Picture, TextScreen
from sublet.errors import UsageError
from sublet.machine.key_text import Chord
from sublet.machine.screen import Screen

_TEXT_PERIOD_S: Final = 0.04
_PICTURE_PERIOD_S: Final = 0.2
_STILL_PERIOD_S: Final = 0.1
"""How long nothing may change before the screen is looked at less often; also between two machines."""
_JOIN_LIMIT_S: Final = 2.0
_USUAL_SIZE: Final = os.terminal_size((80, 25))
_OWN_SCREEN: Final = b"\x1b[?1049h\x1b[2J"
_SCREEN_BACK: Final = b"\x1b[0m\x1b[?25h\x1b[?1049l"


class ScreenConsole(StreamConsole):
    """A console that shows the screen in place of the serial port, whose bytes are dropped.

    ``Ctrl-]`` leaves, whatever the screen shows.
    """

    def __init__(self, terminal: RawTerminal) -> None:
        super().__init__(0, 1, terminal)
        self._screen: Screen | None = None
        self._keys = TerminalKeys()
        self._painter = Painter(self._send)
        self._truecolour = os.environ.get("COLORTERM", "") in ("truecolor", "24bit")
        self._last: TextScreen | Picture | None = None
        self._last_size: os.terminal_size | None = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def write(self, data: bytes) -> None:
        """The serial port's output, which nobody sees."""

    def _send(self, data: bytes) -> None:
        super().write(data)

    def show(self, screen: Screen | None) -> None:
        """Look at this machine from now on."""
        self._screen = screen

    def start(self, on_input: Callable[[bytes], int]) -> None:
        """Take the terminal over."""
        if self._thread is not None:
            return
        super().start(self._type)
        self._send(_OWN_SCREEN)
        self._thread = threading.Thread(target=self._paint, name="screen", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give the terminal back. Safe to call more than once, from any thread."""
        self._give_back()
        super().stop()

    def _leave(self) -> None:
        self._give_back()
        super()._leave()

    def _give_back(self) -> None:
        self._done.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_JOIN_LIMIT_S)
            self._send(_SCREEN_BACK)

    # Keys

    def _type(self, data: bytes) -> int:
        screen = self._screen
        if screen is None:
            return 0
        for chord in self._keys.feed(data):
            _press(screen, chord)
        return len(data)

    # Painting

    def _paint(self) -> None:
        period = 0.0
        while not self._done.wait(period):
            screen = self._screen
            period = _STILL_PERIOD_S if screen is None else self._refresh(screen)

    def _refresh(self, screen: Screen) -> float:
        """Draw what changed; returns how soon to look again, in seconds."""
        seen: TextScreen | Picture = screen.text() or screen.picture()
        size = _terminal_size()
        if seen == self._last and size == self._last_size:
            return _STILL_PERIOD_S
        self._last, self._last_size = seen, size
        self._painter.show(self._frame(seen, size.columns, size.lines))
        return _TEXT_PERIOD_S if isinstance(seen, TextScreen) else _PICTURE_PERIOD_S

    def _frame(self, seen: TextScreen | Picture, columns: int, rows: int) -> Frame:
        if isinstance(seen, TextScreen):
            return text_frame(seen, columns, rows)
        return picture_frame(seen, columns, rows, truecolour=self._truecolour)


def _terminal_size() -> os.terminal_size:
    """Columns and rows of the terminal; 80 by 25 where it does not say."""
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return _USUAL_SIZE
    return size if size.columns and size.lines else _USUAL_SIZE


def _press(screen: Screen, chord: Chord) -> None:
    """A key that the guest has no room for is lost, as on a real keyboard."""
    for key in chord:
        screen.keys.press(key)
    for key in reversed(chord):
        screen.keys.release(key)


def open_screen_console() -> ScreenConsole:
    """The console on this process's terminal.

    Raises:
        UsageError: There is no terminal to draw on.
    """
    on_terminal = os.isatty(0) and os.isatty(1) and os.tcgetpgrp(0) == os.getpgrp()
    if not on_terminal:
        raise UsageError(
            "--console vga needs a terminal in the foreground",
            remedy="Run with --console serial, and use `sublet screenshot` and `sublet type`.",
        )
    return ScreenConsole(RawTerminal(0))
