"""The end of the control socket inside a machine's process."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from pathlib import Path
from typing import IO, Final

from sublet.control import wire
from sublet.control.operations import Operations
from sublet.errors import HostRefused, UsageError, WrongMoment

_BACKLOG: Final = 16
_MOST_CALLS: Final = 32
_REQUEST_TIMEOUT_S: Final = 10.0
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


class ControlServer:
    """Serves calls, a thread each, to processes of the same user. `close` in every case.

    Args:
        path: Where to listen; must not exist.

    Raises:
        HostRefused: The socket cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._operations: Operations | None = None
        self._places = threading.BoundedSemaphore(_MOST_CALLS)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen(_BACKLOG)
        except OSError as error:
            self._listener.close()
            raise HostRefused(f"cannot listen on {path}: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._thread.start()

    def attach(self, operations: Operations | None) -> None:
        """Serve these from now on; None between two power cycles."""
        self._operations = operations

    def close(self) -> None:
        """Accept no more; calls that run may end by themselves. Idempotent."""
        self._operations = None
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        except OSError:
            return
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not _is_ours(connection) or not self._places.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), name="call", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as stream:
                connection.settimeout(_REQUEST_TIMEOUT_S)
                answer = self._answer(connection, stream)
                connection.settimeout(None)
                if answer is not None:
                    connection.sendall(answer)
        except OSError:
            pass  # the client has gone
        finally:
            self._places.release()

    def _answer(self, connection: socket.socket, stream: IO[bytes]) -> bytes | None:
        try:
            request = wire.read(stream)
            if request is None:
                return None
            return wire.encode({"result": self._perform(connection, request)})
        except OSError:
            raise
        except Exception as error:
            return wire.encode(wire.describe(error))

    def _perform(self, connection: socket.socket, request: dict[str, object]) -> object:
        name, parameters = request.get("operation"), request.get("parameters", {})
        if not isinstance(name, str) or not isinstance(parameters, dict):
            raise UsageError("a request has an operation and parameters")
        operations = self._operations
        if operations is None:
            raise WrongMoment("the machine is being built", remedy="Try again in a second.")
        return operations.find(name)(parameters, _SocketCall(connection))


class _SocketCall:
    """`sublet.control.Call` of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._gone = False

    def progress(self, done: int, total: int) -> None:
        try:
            self._connection.sendall(wire.encode({"progress": [done, total]}))
        except OSError:
            self._gone = True

    def cancelled(self) -> bool:
        if not self._gone:
            # A client says nothing after its request: whatever can be read is the end.
            readable, _, _ = select.select([self._connection], [], [], 0)
            self._gone = bool(readable)
        return self._gone


def _is_ours(connection: socket.socket) -> bool:
    """Whether the other end is a process of this user, or root's."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return uid in (os.getuid(), 0)
