"""Giving an overlay another parent."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sublet.block.contract import BlockStatus
from sublet.block.description import BackingReference
from sublet.block.format import Image, read_parent
from sublet.block.images import open_image, relative_reference
from sublet.block.operations.copy import WINDOW, Progress, no_progress


def rebase(
    path: Path,
    backing: Path | None,
    *,
    backing_format: str | None = None,
    format: str | None = None,
    folders: Iterable[Path] = (),
    unsafe: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Make ``backing`` the parent of the overlay at ``path``; None for no parent.

    Where the old and the new parent differ, what the disk held is first written into the overlay, and is
    stable before the new name is; with ``unsafe`` only the name changes.

    Raises:
        UsageError: The format cannot change its parent.
        ImageError: A parent cannot be opened.
    """
    folders = tuple(folders)
    new: Image | None = None
    reference = None
    if backing is not None:
        new = open_image(backing, format=backing_format, readonly=True, folders=folders)
        reference = BackingReference(relative_reference(path, backing), new.format)
    try:
        with open_image(path, format=format, folders=folders, parents=not unsafe) as overlay:
            if not unsafe:
                _copy_differences(overlay, new, progress)
                overlay.flush()
            overlay.set_backing(reference)
    finally:
        if new is not None:
            new.close()


def _copy_differences(overlay: Image, new: Image | None, progress: Progress) -> None:
    """Write into the overlay what it would lose."""
    offset = 0
    while offset < overlay.size:
        own = overlay.own_map(offset, overlay.size - offset)
        size = min(own.size, WINDOW - offset % WINDOW)
        if own.present or _zero_below(overlay, new, offset, own.size):
            size = own.size
        else:
            data, other = overlay.read(offset, size), bytearray(size)
            read_parent(new, offset, memoryview(other))
            if data != other:
                overlay.write(offset, data)
        offset += size
        progress(offset, overlay.size)


def _zero_below(overlay: Image, new: Image | None, offset: int, size: int) -> bool:
    """Whether both parents say that the whole range is zero."""
    for image in (overlay, new):
        if image is None or offset >= image.size:
            continue
        extent = image.block_status(offset, min(size, image.size - offset))
        short = extent.size < min(size, image.size - offset)
        if extent.status is not BlockStatus.ZERO or short:
            return False
    return True
