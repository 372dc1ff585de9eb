"""Mirroring a running machine's disk into another file, and moving the machine onto it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sublet.block.format import Image
from sublet.block.images import open_image
from sublet.block.live.follow import Follower
from sublet.block.live.job import Job
from sublet.block.live.overlay import recorded, resume_bitmaps
from sublet.block.operations.convert import move_in
from sublet.block.registry import find_format
from sublet.errors import HostRefused, UsageError


def mirror(
    job: Job, target: Path, *, format: str, options: Mapping[str, str] | None = None, pivot: bool = False
) -> int:
    """Copy the disk into a new image at ``target`` while the guest uses it.

    The copy is the disk at one moment: when the last of it has been copied. It appears at ``target`` when it
    is complete and on stable storage; on failure nothing does, and the guest notices nothing.

    Args:
        pivot: Let the machine go on with the copy; its old image stays as it was at that moment.

    Returns:
        Bytes copied.

    Raises:
        WrongMoment: Another job is under way, or this one was cancelled.
        HostRefused: ``target`` exists, or the host has no room.
        UsageError: The format or an option is none, or cannot be written beside a guest.
    """
    drive = job.drive
    with drive.claim("mirror"), new_image(target) as made:
        find_format(format).create(made, drive.size, options=options or {}, backing=None, files=drive.files)
        copy = open_image(made, format=format, files=drive.files)
        try:
            if copy.sequential:
                raise UsageError(f"{target}: such an image is written in one go, never beside a guest")
            follower = Follower(job, copy)
            with drive.alone():
                drive.watch(follower)
            try:
                follower.run()
            except BaseException:
                with drive.alone():
                    drive.watch(None)
                raise
            copy.flush()  # Most of it, while the guest goes on.
            with drive.alone():
                drive.watch(None)
                follower.require_same()
                copy.flush()
                if pivot:
                    _pivot(job, copy, made, target)
        finally:
            if drive.image is not copy:
                copy.close()
        if not pivot:
            move_in(made.parent, target)
    job.finish(drive.size)
    return follower.copied


def _pivot(job: Job, copy: Image, made: Path, target: Path) -> None:
    """Move the machine onto the copy, which is complete and stable. The drive is alone."""
    drive, old = job.drive, job.drive.image
    bitmaps = recorded(old)
    copy.close()
    move_in(made.parent, target)
    top = open_image(target, format=copy.format, files=drive.files)
    try:
        resume_bitmaps(top, bitmaps)
        drive.exchange(top)
        old.close()
    except BaseException:
        # The old image is complete as well: the guest goes on with one of the two.
        if drive.image is not top:
            top.close()
        raise


@contextmanager
def new_image(target: Path) -> Iterator[Path]:
    """Where to make what shall appear at ``target`` complete: in a folder of its own, gone afterwards."""
    if target.exists():
        raise HostRefused(f"{target} exists already", remedy="Choose another name, or remove it first.")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.resolve().parent))
    except OSError as error:
        raise HostRefused(f"cannot write beside {target}: {error.strerror}") from error
    try:
        yield folder / target.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)
