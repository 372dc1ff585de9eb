"""Converting an image into another format, all or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from sublet.block.description import SECTOR
from sublet.block.format import Image
from sublet.block.hostfile import HostFiles, OsFiles
from sublet.block.images import open_image
from sublet.block.operations.copy import Progress, copy, no_progress
from sublet.block.registry import find_format
from sublet.errors import HostRefused


def convert(
    source: Image,
    path: Path,
    *,
    format: str,
    options: Mapping[str, str] | None = None,
    compress: bool = False,
    replace: bool = False,
    files: HostFiles | None = None,
    progress: Progress = no_progress,
) -> None:
    """Write what ``source`` and its parents hold into a new image at ``path``.

    The image is made in a folder of its own beside ``path`` and moved when it is complete and on stable
    storage. On any failure, and on Ctrl-C, nothing is left and an existing target is as it was.

    Args:
        replace: Replace an existing file.
        files: Writes the target, and syncs it or not; by default the host's files, synced once at the end.

    Raises:
        HostRefused: The target exists, or the host has no room.
        UsageError: An option is none of the format's.
    """
    if path.exists() and not replace:
        raise HostRefused(f"{path} exists already", remedy="Remove it first, or give --force.")
    chosen = find_format(format)
    size = -(-source.size // SECTOR) * SECTOR
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.resolve().parent))
    except OSError as error:
        raise HostRefused(f"cannot write beside {path}: {error.strerror}") from error
    made = folder / path.name
    try:
        chosen.create(made, size, options=options or {}, backing=None, files=OsFiles(sync=False))
        target_files = files or OsFiles(sync=False)
        with open_image(made, format=format, files=target_files) as target:
            copy(source, target, compress=compress, fresh=True, progress=progress)
        if files is None:
            sync_folder(folder)
        move_in(folder, path, sync=files is None)
    except OSError as error:
        raise HostRefused(
            f"cannot convert {source.path} into {path}: {error.strerror or error}",
            remedy="Nothing is left of it.",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Bring the folder's files to stable storage."""
    for file in folder.iterdir():
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def move_in(folder: Path, path: Path, *, sync: bool = True) -> None:
    """Move the files of ``folder`` beside ``path``, the one named like it last, and make that durable.

    Args:
        sync: Wait until it is; a host's file system may then write out all that it has.
    """
    others: Iterable[Path] = (file for file in folder.iterdir() if file.name != path.name)
    for file in (*others, folder / path.name):
        file.replace(path.parent / file.name)
    if not sync:
        return
    fd = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
