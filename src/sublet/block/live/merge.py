"""Taking an overlay out of a running machine's chain: into its parent, or its parents into it."""

from __future__ import annotations

from sublet.block.contract import BlockStatus
from sublet.block.format import Image
from sublet.block.images import open_image
from sublet.block.live.follow import Follower, own
from sublet.block.live.job import WINDOW, ZERO_WINDOW, Job
from sublet.block.live.overlay import folders_of, recorded, reopen, resume_bitmaps
from sublet.block.qcow2.image import Qcow2Image
from sublet.errors import UsageError


def commit(job: Job) -> int:
    """Write what the overlay holds into its parent, and let the machine go on with the parent.

    The parent is stable before the overlay is emptied, and the overlay is empty before the parent is
    written by the guest: whichever of the two somebody opens after a crash holds the disk.

    Returns:
        Bytes copied.

    Raises:
        UsageError: The disk is no QCOW2 overlay, or is encrypted with an external data file.
        HostRefused: The parent is in use by another machine.
        WrongMoment: Another job is under way, or this one was cancelled.
    """
    drive = job.drive
    with drive.claim("commit"):
        _require_overlay(drive.image)
        with drive.alone():
            overlay = _with_writable_parent(job)
        parent = overlay.backing
        assert parent is not None, "an overlay has a parent"
        if parent.size < overlay.size:
            parent.resize(overlay.size)
        follower = Follower(job, parent, own)
        with drive.alone():
            drive.watch(follower)
        try:
            follower.run()
            parent.flush()  # Most of it, while the guest goes on.
        except BaseException:
            with drive.alone():
                drive.watch(None)
            raise
        with drive.alone():
            drive.watch(None)
            follower.require_same()
            _move_to_parent(job, overlay, parent)
    job.finish(drive.size)
    return follower.copied


def _require_overlay(image: Image) -> Qcow2Image:
    if not isinstance(image, Qcow2Image) or image.backing is None or image.external_data:
        raise UsageError(f"{image.path} is no QCOW2 overlay of a running machine's disk")
    return image


def _with_writable_parent(job: Job) -> Qcow2Image:
    """Open the chain again, the parent for writing. The drive is alone."""
    drive, old = job.drive, job.drive.image
    bitmaps = recorded(old)
    old.close()
    try:
        top = _require_overlay(
            open_image(
                old.path,
                format=old.format,
                files=drive.files,
                folders=folders_of(old),
                writable_parent=True,
            )
        )
    except BaseException:
        again = reopen(drive, old)
        resume_bitmaps(again, bitmaps)
        drive.exchange(again)
        raise
    drive.exchange(top)
    return top


def _move_to_parent(job: Job, overlay: Qcow2Image, parent: Image) -> None:
    """Empty the overlay and go on with the parent. The drive is alone, the two read the same."""
    parent.flush()
    overlay.make_empty()
    bitmaps = recorded(overlay)
    overlay.take_backing()
    job.drive.exchange(parent)
    resume_bitmaps(parent, bitmaps)
    overlay.close()


def stream(job: Job) -> int:
    """Copy what the parents hold into the overlay, which then needs none.

    What is copied so far stays when the job is cancelled, and serves the next attempt.

    Returns:
        Bytes copied.

    Raises:
        UsageError: The disk is no QCOW2 overlay.
        WrongMoment: Another job is under way, or this one was cancelled.
    """
    drive, copied = job.drive, 0
    with drive.claim("stream"):
        overlay = _require_overlay(drive.image)
        place = 0
        while place < drive.size:
            left = drive.size - place
            glance = overlay.map(place, min(left, ZERO_WINDOW))
            wanted = _is_below(glance.depth, glance.status)
            span = min(glance.size, WINDOW) if wanted else glance.size
            # Where nothing is to be copied now, nothing will be: a guest's write makes it the overlay's own.
            if wanted:
                with drive.hold(place, span):
                    copied += _lift(overlay, place, span)
            place += span
            job.step(place, drive.size, span if wanted else 0)
        overlay.flush()
        with drive.alone():
            overlay.set_backing(None)
            below = overlay.take_backing()
        if below is not None:
            below.close()
    job.finish(drive.size)
    return copied


def _is_below(depth: int, status: BlockStatus) -> bool:
    return depth > 0 and status is BlockStatus.DATA


def _lift(overlay: Image, offset: int, size: int) -> int:
    """Write what parents hold of the range into the overlay; the range is held. Returns bytes."""
    copied, end = 0, offset + size
    while offset < end:
        extent = overlay.map(offset, end - offset)
        if _is_below(extent.depth, extent.status):
            overlay.write(offset, overlay.read(offset, extent.size))
            copied += extent.size
        offset += extent.size
    return copied
