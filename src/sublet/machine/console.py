"""What a machine needs of the user's terminal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sublet.machine.screen import Screen


class Console(Protocol):
    """A terminal or a pair of pipes. ``on_input`` runs on a thread of the console's.

    A user who leaves (``Ctrl-]``) is a SIGINT to this process.
    """

    def write(self, data: bytes) -> None:
        """Show the guest's bytes; called from the machine's threads, one at a time."""

    def start(self, on_input: Callable[[bytes], int]) -> None:
        """Begin to deliver input. ``on_input`` returns how many bytes it took; offer the rest later."""

    def show(self, screen: Screen | None) -> None:
        """The machine's screen until the next call; None when it has none, or between two boots."""

    def stop(self) -> None:
        """End input and restore the terminal. Safe to call more than once."""


class InputRoute:
    """Leads console input to the device that the guest reads now; any thread.

    Between two boots there is none: nothing is taken, and the console keeps its bytes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._receive: Callable[[bytes], int] | None = None

    def connect(self, receive: Callable[[bytes], int] | None) -> None:
        """Set where input goes; waits for a delivery in progress."""
        with self._lock:
            self._receive = receive

    def offer(self, data: bytes) -> int:
        """Pass ``data`` on; returns how many bytes were taken, from the front."""
        with self._lock:
            return self._receive(data) if self._receive is not None else 0
