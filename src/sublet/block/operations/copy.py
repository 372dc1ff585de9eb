"""Copying what an image holds into another: large pieces, several at once, zeroes left out."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from sublet.block.contract import BlockStatus
from sublet.block.description import MapExtent
from sublet.block.format import Image
from sublet.block.operations.fill import fill

if TYPE_CHECKING:
    from concurrent.futures import Future

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

WINDOW: Final = 2 << 20
"""Bytes read at once, from a multiple of it."""
_WORKERS: Final = max(2, min(4, os.cpu_count() or 2))
"""More than there are processors only wait for each other, in the host's file system."""
_ZERO_GRANULARITY: Final = 4096
_HOLE: Final = 64 << 10

Select = Callable[[int, int], MapExtent]


def no_progress(done: int, total: int) -> None:
    """For callers who do not watch."""


def copy(
    source: Image,
    target: Image,
    *,
    compress: bool = False,
    select: Select | None = None,
    erase: bool = False,
    fresh: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Copy all data of ``source`` to the same offsets of ``target``, which is at least as large.

    Args:
        compress: Write whole clusters compressed where the format can.
        select: Maps (offset, size) to an extent; what is ZERO or not present there is not read.
        erase: The target may hold data already: write zeroes where the source has them (and is present).
        fresh: The target was just made, and nobody has a use for it unless all of this succeeds.
        progress: Called from this thread.
    """
    cluster = target.info().cluster_size or _ZERO_GRANULARITY
    job = _Job(source, target, cluster, compress=compress, erase=erase)
    workers = 1 if target.sequential else _WORKERS
    if fresh and not compress and target.can_place:
        left = fill(source, target, granularity=job.granularity, progress=progress)
        windows: Iterator[MapExtent] = (window for extent in left for window in _cut(extent))
    else:
        windows = _windows(source, select or source.map)
    first = next(windows, None)
    if first is not None:
        _run_all(job, itertools.chain((first,), windows), workers, lambda at: progress(at, source.size))
    progress(source.size, source.size)


def _run_all(job: _Job, windows: Iterable[MapExtent], workers: int, progress: Callable[[int], None]) -> None:
    """Run the job for each window, several at once; ``progress`` hears of each that is done."""
    # Threads are loaded when there is work for them: mostly the core has done it all.
    from concurrent.futures import ThreadPoolExecutor

    pending: deque[tuple[int, Future[None]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="copy") as pool:
        try:
            for extent in windows:
                pending.append((extent.offset, pool.submit(job.run, extent)))
                if len(pending) > 2 * workers:
                    offset, future = pending.popleft()
                    future.result()
                    progress(offset)
            for offset, future in pending:
                future.result()
                progress(offset)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _windows(source: Image, choose: Select) -> Iterator[MapExtent]:
    """Extents to copy: data cut at multiples of ``WINDOW``, zeroes as long as they are."""
    offset = 0
    while offset < source.size:
        extent = choose(offset, source.size - offset)
        if not extent.present and extent.status is BlockStatus.ZERO and extent.depth == 0:
            offset += extent.size
            continue
        if extent.status is BlockStatus.ZERO:
            yield extent
            offset += extent.size
            continue
        end = min(source.size, (offset // WINDOW + 1) * WINDOW)
        # Small pieces are read with what follows up to the window's end; holes there read as zeroes.
        size = end - offset if choose == source.map else min(extent.size, end - offset)
        yield MapExtent(offset, size, BlockStatus.DATA)
        offset += size


def _cut(extent: MapExtent) -> Iterator[MapExtent]:
    """An extent of data, cut at multiples of ``WINDOW``."""
    offset, end = extent.offset, extent.offset + extent.size
    while offset < end:
        size = min(end, (offset // WINDOW + 1) * WINDOW) - offset
        yield MapExtent(offset, size, BlockStatus.DATA)
        offset += size


class _Job:
    def __init__(self, source: Image, target: Image, cluster: int, *, compress: bool, erase: bool) -> None:
        self._source = source
        self._target = target
        # Compression takes whole clusters; otherwise a large cluster's zeroes may stay a hole in the file.
        self.granularity = min(cluster, WINDOW if compress else _HOLE)
        self._write = target.write_compressed if compress else target.write
        self._erase = erase
        self._buffers = threading.local()

    def _buffer(self) -> bytearray:
        """A window of memory of this thread's own, used again: new memory costs as much as filling it."""
        buffer: bytearray | None = getattr(self._buffers, "buffer", None)
        if buffer is None:
            buffer = self._buffers.buffer = bytearray(WINDOW)
        return buffer

    def run(self, extent: MapExtent) -> None:
        """Copy an extent; of data, only the blocks that are not zero."""
        if extent.status is BlockStatus.ZERO:
            if self._erase:
                self._target.write_zeroes(extent.offset, extent.size)
            return
        data = self._buffer()
        view = memoryview(data)[: extent.size]
        self._source.readinto(extent.offset, view)
        for start, end, zero in zero_runs(data, extent.offset, extent.size, self.granularity):
            if not zero:
                self._write(extent.offset + start, view[start:end])
            elif self._erase:
                self._target.write_zeroes(extent.offset + start, end - start)


def zero_runs(data: bytearray, offset: int, size: int, granularity: int) -> Iterator[tuple[int, int, bool]]:
    """Half-open runs of blocks that are all zero or not, as (start, end, zero).

    Args:
        data: What the disk holds from ``offset`` on, ``size`` bytes; perhaps more.
        granularity: Bytes of a block of the disk.
    """
    whole, start, position = bytes(granularity), 0, 0
    state: bool | None = None
    while position < size:
        step = min(size - position, granularity - (offset + position) % granularity)
        zeroes = whole if step == granularity else bytes(step)
        zero = data.startswith(zeroes, position)
        if state is not None and zero is not state:
            yield start, position, state
            start = position
        state = zero
        position += step
    if state is not None:
        yield start, size, state
