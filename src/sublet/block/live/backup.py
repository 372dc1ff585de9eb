"""Backing up a running machine's disk as it was at one moment: all of it, or what a bitmap says has changed.

What is still to be copied when the guest wants to overwrite it is copied first, by the guest's own request.
So the backup holds the disk of the moment when it began, however long it takes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sublet.block.contract import BlockStatus
from sublet.block.description import BackingReference
from sublet.block.format import Image
from sublet.block.hostfile import Bytes
from sublet.block.images import open_image, relative_reference
from sublet.block.live.drive import Drive
from sublet.block.live.job import Job
from sublet.block.live.mirroring import new_image
from sublet.block.operations.convert import move_in
from sublet.block.qcow2.bitmaps import bit_runs, set_bits
from sublet.block.qcow2.image import Qcow2Image
from sublet.block.registry import find_format
from sublet.errors import SubletError, UsageError

_CHUNK: Final = 64 << 10
"""Unit of copying: a cluster of the backups that we make, so that none is written in part."""
_PIECE: Final = 16
"""Chunks that the job copies at once."""


class Copier:
    """Copies chunks of a drive, each once and before the guest changes it (``drive.Watcher``).

    Args:
        drive: The disk.
        target: Where to; of the disk's size.
        ranges: (offset, bytes) of what is to be copied.
    """

    def __init__(self, drive: Drive, target: Image, ranges: Iterable[tuple[int, int]]) -> None:
        self._drive = drive
        self._target = target
        chunks = -(-drive.size // _CHUNK)
        self._wanted = bytearray(-(-chunks // 8))
        for offset, size in ranges:
            set_bits(self._wanted, offset // _CHUNK, (offset + size - 1) // _CHUNK + 1)
        self._changed = threading.Condition()
        self._busy: set[int] = set()
        self._error: Exception | None = None

    def chunks(self) -> list[tuple[int, int]]:
        """Half-open runs of the chunks that are to be copied, as it is now."""
        return list(bit_runs(self._wanted))

    def copy(self, first: int, last: int) -> int:
        """Copy those of the half-open range of chunks that are still to be copied; returns bytes.

        Also waits for those that another thread copies.
        """
        mine = self._take(first, last)
        try:
            return sum(self._copy_run(*run) for run in _runs(mine))
        finally:
            with self._changed:
                self._busy.difference_update(mine)
                self._changed.notify_all()

    def _take(self, first: int, last: int) -> list[int]:
        with self._changed:
            mine = [n for n in range(first, last) if self._wanted[n >> 3] >> (n & 7) & 1]
            for number in mine:
                self._wanted[number >> 3] &= ~(1 << (number & 7))
            others = set(range(first, last)) & self._busy
            self._busy.update(mine)
            while others & self._busy:
                self._changed.wait()
        return mine

    def _copy_run(self, first: int, last: int) -> int:
        offset = first * _CHUNK
        size = min(self._drive.size, last * _CHUNK) - offset
        # Zeroes too: below an increment there may be something else.
        self._target.write(offset, self._drive.image.read(offset, size))
        return size

    def require_complete(self) -> None:
        """Raise what kept a guest's request from copying."""
        if self._error is not None:
            raise self._error

    def before_write(self, offset: int, size: int) -> None:
        """Save the old content. A backup that fails ends the job, never the guest's write."""
        if self._error is not None or not size:
            return
        try:
            self.copy(offset // _CHUNK, (offset + size - 1) // _CHUNK + 1)
        except (OSError, SubletError) as error:
            self._error = error

    def after_write(self, offset: int, size: int, data: Bytes | None) -> None:
        """Nothing."""


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def back_up(
    job: Job,
    target: Path,
    *,
    format: str = "qcow2",
    bitmap: str | None = None,
    previous: Path | None = None,
    previous_format: str | None = None,
) -> int:
    """Write the disk as it is now into a new image at ``target``, while the guest goes on.

    Args:
        bitmap: Begin this dirty bitmap anew at the same moment (made if there is none), so that the next
            backup can be an increment.
        previous: The backup before, of which ``bitmap`` records the changes since: then only those are
            written, into an overlay on it.

    Returns:
        Bytes copied.

    Raises:
        UsageError: There is no such bitmap, or the disk cannot have one.
        WrongMoment: Another job is under way, or this one was cancelled; the bitmap is as before.
        HostRefused: ``target`` exists, or the host has no room.
    """
    drive = job.drive
    with drive.claim("backup"), new_image(target) as made:
        reference = _reference(drive, target, previous, previous_format)
        find_format(format).create(made, drive.size, options={}, backing=reference, files=drive.files)
        copy = open_image(made, format=format, files=drive.files, parents=False)
        try:
            copied = _copy_moment(job, copy, bitmap, incremental=previous is not None)
        finally:
            copy.close()
        move_in(made.parent, target)
    job.finish(drive.size)
    return copied


def _reference(
    drive: Drive, target: Path, previous: Path | None, previous_format: str | None
) -> BackingReference | None:
    if previous is None:
        return None
    folders = [previous.resolve().parent]
    with open_image(previous, format=previous_format, readonly=True, folders=folders) as parent:
        if parent.size > drive.size:
            raise UsageError(f"{previous} is larger than the disk: it is no earlier backup of it")
        return BackingReference(relative_reference(target, previous), parent.format)


def _copy_moment(job: Job, copy: Image, bitmap: str | None, *, incremental: bool) -> int:
    """Take the moment, copy, and put the bitmap back if that fails."""
    drive = job.drive
    if copy.sequential:
        raise UsageError(f"{copy.path}: such an image is written in one go, never beside a guest")
    with drive.alone():
        image = drive.image
        ranges, before = _begin(image, bitmap, incremental=incremental)
        copier = Copier(drive, copy, ranges)
        drive.watch(copier)
    copied = 0
    try:
        runs = copier.chunks()
        for first, last in runs:
            for start in range(first, last, _PIECE):
                copied += copier.copy(start, min(last, start + _PIECE))
                copier.require_complete()
                job.step(start * _CHUNK, drive.size, min(last - start, _PIECE) * _CHUNK)
        with drive.alone():
            drive.watch(None)
        copier.require_complete()
        copy.flush()
    except BaseException:
        with drive.alone():
            drive.watch(None)
            if bitmap is not None and before is not None and isinstance(image, Qcow2Image):
                image.merge_bitmap(bitmap, *before)
        raise
    return copied


def _begin(
    image: Image, bitmap: str | None, *, incremental: bool
) -> tuple[list[tuple[int, int]], tuple[int, bytes] | None]:
    """Ranges to copy, and the bitmap as it was, which begins anew. The drive is alone."""
    if bitmap is None:
        if incremental:
            raise UsageError("an increment needs the bitmap that recorded the changes")
        return _stored(image), None
    if not isinstance(image, Qcow2Image):
        raise UsageError(f"{image.path} is a {image.format} image: only qcow2 has bitmaps")
    if not incremental and all(one.name != bitmap for one in image.bitmaps.all):
        image.add_bitmap(bitmap)
        return _stored(image), None
    ranges = image.dirty_ranges(bitmap) if incremental else _stored(image)
    before = image.bitmap_bits(bitmap)
    image.clear_bitmap(bitmap)
    return ranges, before


def _stored(image: Image) -> list[tuple[int, int]]:
    """(offset, bytes) of what is not known to be zero."""
    return [(e.offset, e.size) for e in image.extents() if e.status is not BlockStatus.ZERO]
