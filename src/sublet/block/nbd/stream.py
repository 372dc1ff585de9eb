"""A connection as whole messages."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence


class Disconnected(Exception):
    """The peer has gone."""


class Stream:
    """Sends and receives exactly what is asked for; sending is for any thread, receiving for one."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def receive(self, size: int) -> bytes:
        """Exactly ``size`` bytes.

        Raises:
            Disconnected: The peer closed, or the connection broke.
        """
        data = bytearray(size)
        view = memoryview(data)
        while view:
            try:
                count = self._connection.recv_into(view)
            except OSError as error:
                raise Disconnected from error
            if not count:
                raise Disconnected
            view = view[count:]
        return bytes(data)

    def send(self, *parts: bytes) -> None:
        """Send all parts as one message.

        Raises:
            Disconnected: The connection broke.
        """
        self._send(parts)

    def _send(self, parts: Sequence[bytes]) -> None:
        with self._sending:
            try:
                for part in parts:
                    self._connection.sendall(part)
            except OSError as error:
                raise Disconnected from error

    def close(self) -> None:
        """Break the connection, also for a thread that waits in it."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
