"""Sockets that a command listens on, and how it ends."""

from __future__ import annotations

import contextlib
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from sublet.errors import HostRefused, UsageError

_BACKLOG = 16


@contextlib.contextmanager
def listen(path: Path | None, port: int | None) -> Iterator[socket.socket]:
    """Listen on a Unix socket, which is removed afterwards, or on a port of the loopback address.

    Raises:
        UsageError: Neither or both are given.
        HostRefused: It is in use, or not allowed.
    """
    if (path is None) == (port is None):
        raise UsageError("give either --socket or --port")
    listener = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
    try:
        _bind(listener, path, port)
        yield listener
    finally:
        listener.close()
        if path is not None:
            path.unlink(missing_ok=True)


def _bind(listener: socket.socket, path: Path | None, port: int | None) -> None:
    try:
        if path is None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port or 0))
        else:
            _remove_stale(path)
            listener.bind(str(path))
            path.chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise HostRefused(f"cannot listen on {path or port}: {error.strerror or error}") from error


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


def address_of(listener: socket.socket, export: str) -> str:
    """The NBD URI of a listening socket."""
    name = listener.getsockname()
    if isinstance(name, tuple):
        return f"nbd://127.0.0.1:{name[1]}/{export}"
    return f"nbd+unix:///{export}?socket={name}"


@contextlib.contextmanager
def stops_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` on SIGINT and SIGTERM."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
