"""Committing an overlay: writing what it holds into its parent."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sublet.block.chain import Chain
from sublet.block.format import Image
from sublet.block.images import open_image
from sublet.block.operations.copy import Progress, copy, no_progress
from sublet.errors import UsageError


def commit(
    path: Path,
    *,
    format: str | None = None,
    folders: Iterable[Path] = (),
    keep: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Write what the overlay at ``path`` holds into its parent, then empty the overlay where it can be.

    The parent is stable before the overlay is emptied; a crash leaves work that can be done again.

    Args:
        keep: Leave the overlay as it is.

    Returns:
        The parent's path.

    Raises:
        UsageError: It has no parent.
    """
    folders = tuple(folders)
    with open_image(path, format=format, folders=folders, parents=False) as overlay:
        with open_parent_writable(overlay, path, folders) as parent:
            if parent.size < overlay.size:
                parent.resize(overlay.size)
            copy(overlay, parent, select=overlay.own_map, erase=True, progress=progress)
            parent.flush()
            reached = parent.path
        if not keep:
            overlay.make_empty()
        # Formats that note the state of their parent would refuse the one that was just written to.
        overlay.set_backing(overlay.info().backing)
    return reached


def open_parent_writable(overlay: Image, path: Path, folders: Iterable[Path]) -> Image:
    """Open the parent that ``overlay`` names, for writing.

    Raises:
        UsageError: It has none, or does not say of what format.
    """
    reference = overlay.info().backing
    if reference is None:
        raise UsageError(f"{path} has no parent to commit to")
    target = Chain.start(path, folders=folders).resolve(path, reference.path)
    if reference.format is None:
        raise UsageError(f"{path} does not say what format its parent has")
    return open_image(target, format=reference.format, folders=folders)
