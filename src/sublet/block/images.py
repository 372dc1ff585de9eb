"""Opening and creating images by path, whatever their format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from sublet.block.chain import Chain
from sublet.block.description import SECTOR, BackingReference
from sublet.block.format import Image
from sublet.block.hostfile import HostFiles, Lock, OsFiles
from sublet.block.registry import choose_format, find_format
from sublet.errors import UsageError


def open_image(
    path: Path,
    *,
    format: str | None = None,
    readonly: bool = False,
    folders: Iterable[Path] = (),
    files: HostFiles | None = None,
    lock: Lock | None = None,
    parents: bool = True,
    check: bool = False,
    writable_parent: bool = False,
) -> Image:
    """Open an image and its parents.

    Args:
        format: Name of its format; by default what the file's name says (``registry.choose_format``).
        readonly: Write nothing at all.
        folders: Where parents may be, besides the image's own folder.
        files: Opens host files; by default the host's own.
        lock: By default exclusive for writing and else shared.
        parents: Open parents; without, what they hold reads as zeroes.
        check: Open it for ``Image.check`` alone.
        writable_parent: Open its parent for writing, too, to commit to it while the image is in use.

    Raises:
        UsageError: Nobody said what the format is, and it looks like something other than raw.
        HostRefused: A file cannot be opened, or is in use.
        ImageError: It is damaged, not supported, or its chain of parents is not allowed.
    """
    chain = Chain.start(path, files=files, folders=folders, lock=lock, parents=parents and not check)
    chain = replace(chain, writable_parent=writable_parent)
    if format is not None:
        chosen = find_format(format)
    else:
        file = chain.files.open(path, readonly=True, lock=Lock.NONE)
        try:
            chosen = choose_format(file, None)
        finally:
            file.close()
    return chosen.open(path, readonly=readonly, chain=chain, check=check)


def create_image(
    path: Path,
    size: int | None,
    *,
    format: str,
    options: Mapping[str, str] | None = None,
    backing: Path | None = None,
    backing_format: str | None = None,
    folders: Iterable[Path] = (),
    files: HostFiles | None = None,
) -> None:
    """Create an image that reads as zeroes, or as its parent.

    Args:
        size: Bytes, a multiple of 512; None: the parent's.
        backing: The parent, relative to the current folder; stored relative to the image's where possible.
        backing_format: Its format; by default what its name says.

    Raises:
        UsageError: The size, an option, or the parent does not fit.
        HostRefused: The file exists, or cannot be written.
    """
    chosen = find_format(format)
    reference = None
    if backing is not None:
        reference, parent_size = _refer(path, backing, backing_format, folders, files)
        size = parent_size if size is None else size
    if size is None:
        raise UsageError("a disk without a parent needs a size", remedy="Give one, such as 20G.")
    if size < 0 or size % SECTOR:
        raise UsageError(f"a disk of {size} bytes: the size must be a multiple of {SECTOR}")
    chosen.create(path, size, options=options or {}, backing=reference, files=files or OsFiles())


def _refer(
    path: Path,
    backing: Path,
    backing_format: str | None,
    folders: Iterable[Path],
    files: HostFiles | None,
) -> tuple[BackingReference, int]:
    """How the image at ``path`` names ``backing``, and the size of that disk."""
    with open_image(backing, format=backing_format, readonly=True, folders=folders, files=files) as parent:
        return BackingReference(relative_reference(path, backing), parent.format), parent.size


def relative_reference(path: Path, target: Path) -> str:
    """``target`` as a file beside ``path`` names it: relative when it is in that folder or below."""
    folder, absolute = path.resolve().parent, target.resolve()
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)
