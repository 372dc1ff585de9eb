"""The console of a machine: what the user's terminal offers, and input with back-pressure."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

INPUT_CAPACITY: Final = 64 * 1024
"""Bytes of unread input that one machine holds before it asks its console to wait."""


class Console(Protocol):
    """A terminal or a pair of pipes. ``on_input`` runs on a thread of the console's."""

    def write(self, data: bytes) -> None:
        """Show the guest's bytes; called from vCPU threads, one at a time."""

    def start(self, on_input: Callable[[bytes], int]) -> None:
        """Begin to deliver input. ``on_input`` returns how many bytes it took; offer the rest later."""

    def stop(self) -> None:
        """End input and restore the terminal. Safe to call more than once."""


class ConsoleInput:
    """Bounded queue between the console's thread and the device that the guest reads.

    It outlives a guest reset, so that text typed meanwhile is not lost. Any thread may call it.
    """

    def __init__(self, capacity: int = INPUT_CAPACITY) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._notify: Callable[[], None] | None = None

    def connect(self, notify: Callable[[], None] | None) -> None:
        """Set what is called (without the lock held) after input arrived; None between boots."""
        with self._lock:
            self._notify = notify
            pending = self._size
        if notify is not None and pending:
            notify()

    def offer(self, data: bytes) -> int:
        """Take what fits; returns the number of bytes taken, from the front of ``data``."""
        with self._lock:
            taken = min(len(data), self._capacity - self._size)
            if taken:
                self._chunks.append(bytes(data[:taken]))
                self._size += taken
            notify = self._notify
        if taken and notify is not None:
            notify()
        return taken

    def take(self, limit: int) -> bytes:
        """Remove and return up to ``limit`` bytes, oldest first; empty when there are none."""
        with self._lock:
            if not self._chunks or limit <= 0:
                return b""
            chunk = self._chunks.popleft()
            if len(chunk) > limit:
                self._chunks.appendleft(chunk[limit:])
                chunk = chunk[:limit]
            self._size -= len(chunk)
            return chunk
