"""An external snapshot of a running machine's disk: from now on an overlay takes what the guest writes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from sublet.block.description import BackingReference
from sublet.block.format import Image
from sublet.block.images import open_image, relative_reference
from sublet.block.live.drive import Drive
from sublet.block.qcow2.image import Qcow2Image
from sublet.block.registry import find_format
from sublet.errors import SubletError, WrongMoment

_ATTEMPTS: Final = 20
_PAUSE_S: Final = 0.05


def snapshot(drive: Drive, overlay: Path) -> None:
    """Make a QCOW2 overlay at ``overlay`` on the disk's image, and let it take every further write.

    The image below is flushed, closed as after a clean end and opened for reading only. Dirty bitmaps
    go on in the overlay. The switch lies between two requests; when it fails, the disk goes on as it was,
    and nothing is left at ``overlay``.

    Raises:
        WrongMoment: The disk is read-only, or a job is under way.
        HostRefused: ``overlay`` exists, or cannot be written.
    """
    with drive.claim("snapshot"):
        if drive.readonly:
            raise WrongMoment(f"{drive.image.path} is open for reading only: there is nothing to snapshot")
        below = BackingReference(relative_reference(overlay, drive.image.path), drive.image.format)
        find_format("qcow2").create(overlay, drive.size, options={}, backing=below, files=drive.files)
        try:
            with drive.alone():
                _switch(drive, overlay)
        except BaseException:
            overlay.unlink(missing_ok=True)
            raise


def _switch(drive: Drive, overlay: Path) -> None:
    """Close the image, open the overlay; on failure open the image again."""
    old = drive.image
    bitmaps = recorded(old)
    old.close()
    try:
        top = open_image(overlay, format="qcow2", files=drive.files, folders=folders_of(old))
    except BaseException:
        drive.exchange(reopen(drive, old))
        raise
    try:
        resume_bitmaps(top, bitmaps)
    except BaseException:
        top.close()
        drive.exchange(reopen(drive, old))
        raise
    drive.exchange(top)


def reopen(drive: Drive, image: Image) -> Image:
    """Open again what was just closed; its lock may be held for a moment by somebody who looks at it.

    Raises:
        SubletError: It stays unavailable: the guest sees I/O errors from here on.
    """
    for attempt in range(_ATTEMPTS):
        try:
            folders = folders_of(image)
            return open_image(image.path, format=image.format, files=drive.files, folders=folders)
        except SubletError:
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError("unreachable")


def folders_of(image: Image) -> list[Path]:
    """The folders of an image and of its parents, which were allowed when it was opened."""
    folders: list[Path] = []
    below: Image | None = image
    while below is not None:
        folders.append(below.path.resolve().parent)
        below = below.backing
    return folders


def recorded(image: Image) -> dict[str, tuple[int, bytes]]:
    """Granularity and bits of the bitmaps that are kept up to date, by name."""
    if not isinstance(image, Qcow2Image):
        return {}
    bitmaps = image.bitmaps
    return {
        bitmap.name: (1 << bitmap.granularity_bits, bytes(bitmaps.bits[bitmap.name]))
        for bitmap in bitmaps.all
        if bitmap.name in bitmaps.bits
    }


def resume_bitmaps(image: Image, bitmaps: dict[str, tuple[int, bytes]]) -> None:
    """Go on recording in ``image``: what was dirty stays so."""
    if not isinstance(image, Qcow2Image):
        return
    for name, (granularity, bits) in bitmaps.items():
        if name not in image.bitmaps.bits:
            image.add_bitmap(name, granularity=granularity)
        image.merge_bitmap(name, granularity, bits)
