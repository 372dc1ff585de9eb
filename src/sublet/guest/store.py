"""The cache of guests: where files lie, who may write, and how they appear there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from sublet.errors import HostRefused

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SEEK_STEP: Final = 1 << 20
_NOT_WITHIN_KERNEL: Final = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP)
"""How a file system or an old kernel says that it cannot copy by itself."""


class Progress(Protocol):
    """Told of every long step. ``done`` and ``total`` count bytes or items; ``total`` 0 means unknown."""

    def __call__(self, message: str, done: int = 0, total: int = 0) -> None: ...


def silent(message: str, done: int = 0, total: int = 0) -> None:
    """A ``Progress`` that tells nobody."""


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where sublet caches: ``$XDG_CACHE_HOME/sublet``, or ``~/.cache/sublet``.

    A relative ``XDG_CACHE_HOME`` is ignored, as the standard asks.

    Reference: XDG Base Directory Specification 0.8 §3 "Environment variables".
    """
    named = environ.get("XDG_CACHE_HOME", "")
    base = Path(named) if named.startswith("/") else Path("~/.cache").expanduser()
    return base / "sublet"


def cache_key(*parts: str) -> str:
    """Sixteen hexadecimal digits that differ when any part differs."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def host_errors(what: str) -> Iterator[None]:
    """Turn an ``OSError`` of the body into ``HostRefused`` that names ``what`` and the remedy."""
    try:
        yield
    except OSError as error:
        raise host_refusal(what, error) from error


def host_refusal(what: str, error: OSError) -> HostRefused:
    """The error that a user sees when the host's file system says no."""
    if error.errno in _NO_SPACE:
        remedy = "Free some space there, or set XDG_CACHE_HOME to a directory on a larger disk."
        return HostRefused(f"{what}: no space left on the disk", remedy=remedy)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "Set XDG_CACHE_HOME to a directory that you can write to."
        return HostRefused(f"{what}: {error.strerror} ({error.filename})", remedy=remedy)
    return HostRefused(f"{what}: {error.strerror or error}")


class Store:
    """One cache directory, shared by every sublet process of this user.

    Results are directories named ``<name>-<key>``; each is built beside its place and renamed into it,
    so that a reader sees all of it or none, whenever the builder is interrupted. Builders of one name take
    turns.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, *parts: str) -> Path:
        """A directory below the root, made if need be."""
        path = self.root.joinpath(*parts)
        with host_errors(f"cannot use the cache directory {path}"):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def current(self, name: str, builder: str) -> Path | None:
        """The newest result published as ``name``, or None; another ``builder``'s does not count."""
        pointer = self.root / "guests" / f"{name}.json"
        try:
            path = self.root / "guests" / str(json.loads(pointer.read_text())["directory"])
            made_by = json.loads((path / "manifest.json").read_text())["builder"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return path if made_by == builder else None

    @contextlib.contextmanager
    def lock(self, name: str, progress: Progress = silent) -> Iterator[None]:
        """Hold ``name`` against other processes; waits, and says so, while another holds it."""
        path = self.directory("locks") / f"{name}.lock"
        with host_errors(f"cannot lock {path}"), path.open("ab") as stream:
            if not _try_lock(stream.fileno()):
                progress(f"waiting for another sublet that is preparing {name}")
                fcntl.flock(stream, fcntl.LOCK_EX)
            with host_errors(f"cannot prepare {name}"):
                yield

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new directory on the cache's file system, removed on every way out.

        What a killed process left behind is removed by the next one.
        """
        parent = self.directory("scratch")
        _sweep(parent)
        with contextlib.closing(_HeldDirectory(parent)) as held:
            yield held.path

    def publish(self, name: str, key: str, built: Path, manifest: Mapping[str, Any]) -> Path:
        """Move the directory ``built`` into place with its manifest, and make it what ``current`` returns."""
        target = self.directory("guests") / f"{name}-{key}"
        write_atomically(built / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True).encode())
        _sync_tree(built)
        if target.exists():
            shutil.rmtree(target)
        built.rename(target)
        pointer = json.dumps({"directory": target.name}).encode()
        write_atomically(self.root / "guests" / f"{name}.json", pointer)
        return target

    def private_copy(self, image: Path) -> RunDisk:
        """A writable copy of a cached disk for one run; gone when the run is over."""
        parent = self.directory("runs")
        _sweep(parent)
        return RunDisk(parent, image)


class _HeldDirectory:
    """A new directory in ``parent``, held by a lock that ends with this process.

    It is removed by ``close``, or, where a Ctrl-C comes between two instructions of whoever would call that,
    when the process ends.
    """

    def __init__(self, parent: Path) -> None:
        self.path: Final = parent / os.urandom(8).hex()
        self._remove = weakref.finalize(self, _remove_held, self.path)
        with host_errors(f"cannot use the cache directory {parent}"):
            self._lock = self.path.with_suffix(".lock").open("xb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.path.mkdir()

    def close(self) -> None:
        """Remove the directory and what is in it. Closing twice is harmless."""
        self._remove()
        self._lock.close()


class RunDisk:
    """A throw-away copy of a disk image. ``close`` removes it, or the next run if we are killed."""

    def __init__(self, parent: Path, image: Path) -> None:
        self._directory = _HeldDirectory(parent)
        self.path = self._directory.path / image.name
        try:
            with host_errors(f"cannot copy {image} for this run"):
                copy_sparse(image, self.path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the copy. Closing twice is harmless."""
        self._directory.close()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file and keep its holes, so that a 4 GiB disk costs what is used of it."""
    with source.open("rb") as reader, target.open("xb") as writer:
        size = os.fstat(reader.fileno()).st_size
        os.truncate(writer.fileno(), size)
        for start, end in _data_ranges(reader.fileno(), size):
            _copy_range(reader.fileno(), writer.fileno(), start, end)


def _data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The half-open ranges of a file that are not holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _copy_range(reader: int, writer: int, start: int, end: int) -> None:
    """Copy within the kernel, which shares the blocks where the file system can; else by ourselves."""
    while start < end:
        try:
            copied = os.copy_file_range(reader, writer, min(_SEEK_STEP, end - start), start, start)
        except OSError as error:
            if error.errno not in _NOT_WITHIN_KERNEL:
                raise
            copied = os.pwrite(writer, os.pread(reader, min(_SEEK_STEP, end - start), start), start)
        if not copied:
            return
        start += copied


def _remove_held(path: Path) -> None:
    """Remove a held directory and its lock; a Ctrl-C meanwhile waits until they are gone."""
    try:
        _remove_once(path)
    except KeyboardInterrupt:
        _remove_once(path)
        raise


def _remove_once(path: Path) -> None:
    remove_tree(path)
    path.with_suffix(".lock").unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a directory tree, also where a package made directories that their owner cannot write."""
    for parent, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            Path(parent).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what processes that no longer live left in ``parent``."""
    for lock in parent.glob("*.lock"):
        with contextlib.suppress(OSError), lock.open("rb") as stream:
            if _try_lock(stream.fileno()):
                remove_tree(lock.with_suffix(""))
                lock.unlink(missing_ok=True)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_tree(path: Path) -> None:
    """Flush the files of one directory to the disk before its rename makes them visible."""
    for entry in path.iterdir():
        if entry.is_file():
            with entry.open("rb") as stream:
                os.fsync(stream.fileno())
