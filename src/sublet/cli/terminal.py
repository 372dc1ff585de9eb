"""The user's side of a guest's console: a raw terminal, or a pair of pipes.

One thread waits for input and hands it to the machine, which may take less than it is offered; the
rest is offered again, so that pasted text is never lost and never piles up here. The terminal is
raw only between ``start`` and ``stop``, and is restored at the process's exit in any case.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import termios
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from sublet.cli.messages import say

if TYPE_CHECKING:
    from sublet.machine.screen import Screen

ESCAPE_KEY: Final = 0x1D
"""Ctrl-], as a terminal in raw mode sends it."""

_READ_SIZE: Final = 4096
_RETRY_S: Final = 0.005
"""How soon input that the machine had no room for is offered again."""
_LEAVE_LIMIT_S: Final = 5.0
"""How long a machine may take to end after Ctrl-] before the process ends without it."""
_EXIT_LEFT: Final = 130


class RawTerminal:
    """A terminal's settings: raw while held, restored afterwards whatever happens."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._saved: list[Any] | None = None
        self._previous_continue: Any = None

    def enter(self) -> None:
        """Make the terminal raw; does nothing when it is already."""
        if self._saved is not None:
            return
        self._saved = termios.tcgetattr(self._descriptor)
        atexit.register(self.restore)
        self._set_raw()
        if threading.current_thread() is threading.main_thread():
            # Stopped and continued from outside, the shell has taken the terminal back meanwhile.
            self._previous_continue = signal.signal(signal.SIGCONT, lambda *_: self._set_raw())

    def _set_raw(self) -> None:
        """As ``cfmakeraw`` in termios(3): bytes pass as they are, no echo, no signals, no editing."""
        if self._saved is None:
            return
        iflag, oflag, cflag, lflag, ispeed, ospeed, characters = self._saved
        iflag &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP)
        iflag &= ~(termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
        oflag &= ~termios.OPOST
        cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        characters = list(characters)
        characters[termios.VMIN], characters[termios.VTIME] = 1, 0
        settings = [iflag, oflag, cflag, lflag, ispeed, ospeed, characters]
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._descriptor, termios.TCSANOW, settings)

    def restore(self) -> None:
        """Give the terminal its settings back. Any thread; safe to repeat. Never waits for output."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._descriptor, termios.TCSANOW, saved)
        atexit.unregister(self.restore)
        if threading.current_thread() is threading.main_thread() and self._previous_continue is not None:
            signal.signal(signal.SIGCONT, self._previous_continue)


class StreamConsole:
    """A machine's console on two descriptors; ``terminal`` is given where the first is the user's.

    ``on_leave`` is called, on the console's thread, when the user leaves: by Ctrl-] on a terminal,
    or by closing the reader of the output. By default it interrupts the main thread, as Ctrl-C does.
    """

    def __init__(
        self,
        input_descriptor: int | None,
        output_descriptor: int,
        terminal: RawTerminal | None = None,
        on_leave: Callable[[], None] | None = None,
    ) -> None:
        self._input = input_descriptor
        self._output = output_descriptor
        self._terminal = terminal
        self._on_leave = on_leave or _interrupt_main_thread
        self._write_lock = threading.Lock()
        self._output_gone = False
        self._stopped = threading.Event()
        self._reader: threading.Thread | None = None
        self._wake_read, self._wake_write = -1, -1

    def write(self, data: bytes) -> None:
        """Show all of the guest's bytes, waiting for a slow reader; without a reader, leave."""
        with self._write_lock:
            view = memoryview(data)
            while view and not self._output_gone:
                view = view[self._write_some(view) :]

    def _write_some(self, view: memoryview) -> int:
        try:
            return os.write(self._output, view)
        except BlockingIOError:
            select.select([], [self._output], [], 1.0)
            return 0
        except OSError:
            self._output_gone = True
            self._on_leave()
            return 0

    def start(self, on_input: Callable[[bytes], int]) -> None:
        """Begin to deliver input; a terminal becomes raw, and the way out is shown."""
        if self._reader is not None:
            return
        if self._terminal is not None:
            say("Ctrl-] leaves")
            self._terminal.enter()
        if self._input is None:
            return
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._reader = threading.Thread(target=self._read, args=(on_input,), name="console", daemon=True)
        self._reader.start()

    def show(self, screen: Screen | None) -> None:
        """Nothing: this console is the serial port's."""

    def stop(self) -> None:
        """End input and restore the terminal. Safe to call more than once, from any thread."""
        self._stopped.set()
        if self._terminal is not None:
            self._terminal.restore()
        reader = self._reader
        if reader is None or reader is threading.current_thread():
            return
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")
        reader.join()
        self._reader = None
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _read(self, on_input: Callable[[bytes], int]) -> None:
        while not self._stopped.is_set():
            data = self._receive()
            if data is None:
                return
            escape = data.find(ESCAPE_KEY) if self._terminal is not None else -1
            self._deliver(data if escape < 0 else data[:escape], on_input)
            if escape >= 0:
                self._leave()
                return

    def _receive(self) -> bytes | None:
        """Wait for input; None at its end, or when the console stops."""
        assert self._input is not None
        try:
            ready, _, _ = select.select([self._input, self._wake_read], [], [])
            if self._wake_read in ready:
                return None
            return os.read(self._input, _READ_SIZE) or None
        except BlockingIOError:
            return b""
        except (OSError, ValueError):
            return None

    def _deliver(self, data: bytes, on_input: Callable[[bytes], int]) -> None:
        while data and not self._stopped.is_set():
            taken = on_input(data)
            data = data[taken:]
            if data:
                self._stopped.wait(_RETRY_S)

    def _leave(self) -> None:
        """Leave for certain: a machine that does not end in time is not waited for."""
        if self._terminal is not None:
            self._terminal.restore()
        self._on_leave()
        if not self._stopped.wait(_LEAVE_LIMIT_S):
            say("the machine did not end in time")
            os._exit(_EXIT_LEFT)


def _interrupt_main_thread() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def open_console() -> StreamConsole:
    """The console on this process's standard input and output.

    The terminal is taken only where it is ours: a job in the background that touched its settings
    would be stopped, so it runs without input.
    """
    sys.stdout.flush()
    if not os.isatty(0):
        return StreamConsole(0, 1)
    if os.tcgetpgrp(0) != os.getpgrp():
        return StreamConsole(None, 1)
    return StreamConsole(0, 1, RawTerminal(0))
