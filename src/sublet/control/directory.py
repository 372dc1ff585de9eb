"""Names of running machines: one lock file and one socket each, in a directory of the user's own.

A machine holds an exclusive lock on ``NAME.lock`` for as long as it runs, so that a name whose
process was killed is free again at once: the kernel drops the lock.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sublet.errors import HostRefused, UsageError

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_MOST_OF_ONE_NAME: Final = 1000


@dataclass(frozen=True)
class RunningMachine:
    """A name that is in use."""

    name: str
    socket: Path


def check_name(name: str) -> str:
    """``name`` itself.

    Raises:
        UsageError: It is no name for a machine: 1 to 40 letters, digits, ``_``, ``.`` and ``-``, the
            first a letter or digit.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a machine",
            remedy="Use 1 to 40 letters, digits, '_', '.' and '-', beginning with a letter or digit.",
        )
    return name


def runtime_directory() -> Path:
    """Where locks and sockets are: of this user alone, gone at the next boot where the host has such a place.

    Raises:
        HostRefused: It cannot be made, or others could write to it.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base) / "sublet" if base else Path(f"/tmp/sublet-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise HostRefused(f"cannot make {path}: {error.strerror or error}") from error
    if path.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise HostRefused(
            f"{path} is not a directory of yours alone",
            remedy="Remove it, or set XDG_RUNTIME_DIR to a directory of yours.",
        )
    return path


@contextmanager
def claim(name: str, *, exact: bool) -> Iterator[RunningMachine]:
    """Hold a name; its socket's path is free to be bound, and removed at the end.

    Args:
        name: The wanted one.
        exact: Refuse when it is taken; otherwise ``name-2`` and so on will do.

    Raises:
        UsageError: The name is taken, or is none.
        HostRefused: The runtime directory cannot be used.
    """
    check_name(name)
    directory = runtime_directory()
    for candidate in _candidates(name, exact=exact):
        descriptor = _lock(directory / f"{candidate}.lock")
        if descriptor is None:
            continue
        machine = RunningMachine(candidate, directory / f"{candidate}.sock")
        try:
            machine.socket.unlink(missing_ok=True)
            yield machine
        finally:
            machine.socket.unlink(missing_ok=True)
            (directory / f"{candidate}.lock").unlink(missing_ok=True)
            os.close(descriptor)
        return
    raise UsageError(
        f"a machine named {name!r} is running", remedy="Give another --name; `sublet ps` lists them."
    )


def _candidates(name: str, *, exact: bool) -> Iterator[str]:
    yield name
    if not exact:
        yield from (f"{name}-{number}" for number in range(2, _MOST_OF_ONE_NAME))


def _lock(path: Path) -> int | None:
    """An open, locked descriptor; None when another process holds it."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise HostRefused(f"cannot open {path}: {error.strerror or error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)  # its last owner removed the file between our open and our lock


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def running() -> list[RunningMachine]:
    """The machines of this user that run now, by name."""
    directory = runtime_directory()
    return [
        RunningMachine(lock.stem, lock.with_suffix(".sock"))
        for lock in sorted(directory.glob("*.lock"))
        if _is_held(lock)
    ]


def _is_held(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
