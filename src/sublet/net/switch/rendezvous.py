"""Finding the switch of a network, or starting one: a socket and a guard file in the runtime directory.

Who holds the guard's lock may make the socket or remove it. A machine holds it from looking for the
switch until it is connected; a switch, while it makes sure that nobody waits and removes the socket.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sublet.errors import HostRefused, UsageError
from sublet.net.switch.server import is_ours, set_buffers

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,29}")
_BACKLOG: Final = 128


def check_network_name(name: str) -> str:
    """``name`` itself.

    Raises:
        UsageError: It is no name for a network: 1 to 30 letters, digits, ``_`` and ``-``.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a network",
            remedy="Use 1 to 30 letters, digits, '_' and '-', beginning with a letter or digit.",
        )
    return name


def connect(directory: Path, name: str) -> socket.socket:
    """A connection to the network's switch, which is started if there is none.

    Raises:
        UsageError: ``name`` is none.
        HostRefused: It cannot be started or reached.
    """
    check_network_name(name)
    try:
        with guard(directory, name):
            return _connect_or_start(socket_path(directory, name))
    except OSError as error:
        raise HostRefused(f"cannot join the network {name}: {error.strerror or error}") from error


def _connect_or_start(path: Path) -> socket.socket:
    with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        return _connect(path)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
        _start(path, listener)
        return _connect(path)


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        set_buffers(connection)
        connection.connect(str(path))
        if not is_ours(connection):
            raise PermissionError(1, "the switch is another user's")
    except BaseException:
        connection.close()
        raise
    return connection


def _start(path: Path, listener: socket.socket) -> None:
    """Start a switch on a listening socket; it goes on by itself, whoever started it."""
    # -P: the working directory is no place to import from.
    words = [sys.executable, "-P", "-m", "sublet.net.switch.process", str(path), str(listener.fileno())]
    started = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[listener.fileno()],
        start_new_session=True,
        check=False,
    )
    if started.returncode:
        path.unlink(missing_ok=True)
        raise ChildProcessError(None, "the switch does not start")


@contextmanager
def guard(directory: Path, name: str) -> Iterator[None]:
    """Hold the network's guard."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(directory / f"switch-{name}.guard", flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def socket_path(directory: Path, name: str) -> Path:
    """Where the network's switch listens."""
    return directory / f"switch-{name}.socket"
