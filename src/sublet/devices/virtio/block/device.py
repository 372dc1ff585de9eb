"""The block device: requests of a driver carried out on a ``BlockDevice`` image.

Reference: virtio 1.2 §5.2.6 "Device Operation".
"""

from __future__ import annotations

import logging
import threading

from sublet.block import BlockDevice
from sublet.devices.virtio.block import config as c
from sublet.devices.virtio.device import BATCH, VirtioDevice
from sublet.devices.virtio.queue import (
    DescriptorChain,
    Segment,
    Virtqueue,
    read_segments,
    split_segments,
    write_segments,
)
from sublet.errors import GuestError, SubletError
from sublet.hw import Executor

_LOG = logging.getLogger(__name__)

QUEUE_SIZE = 256
SEG_MAX = QUEUE_SIZE - 2
PIECE = 1 << 20
"""Bytes moved at once: bounds the host memory that one request holds."""
AT_ONCE = 4
"""Requests that a vCPU's thread serves on its way."""
SMALL = 64 << 10
"""Bytes up to which new memory is cheaper than a buffer that is kept."""


class VirtioBlock(VirtioDevice):
    """One disk. Host errors become S_IOERR; requests past the end or of unknown type never touch the image.

    Args:
        image: Served until ``close``, which closes it.
        executor: Where requests run; with several threads, queues run in parallel.
        serial: Up to 20 ASCII characters, the answer to GET_ID.
        queues: Request queues, 1 to 64.
    """

    device_type = c.DEVICE_TYPE
    pci_class = c.PCI_CLASS

    def __init__(self, image: BlockDevice, executor: Executor, *, serial: str = "", queues: int = 1) -> None:
        super().__init__(executor, [QUEUE_SIZE] * queues)
        self._image = image
        self._serial = serial.encode("ascii", "replace")[: c.ID_SIZE].ljust(c.ID_SIZE, b"\0")
        self._sectors = image.size // c.SECTOR
        self._reported = False
        self._buffers = threading.local()

    @property
    def offered_features(self) -> int:
        """Discard and write zeroes only for a writable image."""
        features = c.F_SEG_MAX | c.F_BLK_SIZE | c.F_FLUSH | c.F_TOPOLOGY
        features |= c.F_MQ if len(self.queue_sizes) > 1 else 0
        return features | (c.F_RO if self._image.readonly else c.F_DISCARD | c.F_WRITE_ZEROES)

    def config(self) -> bytes:
        """``struct virtio_blk_config``."""
        return c.pack_config(
            sectors=self._sectors,
            seg_max=SEG_MAX,
            block_size=self._image.block_size,
            physical_block_size=max(4096, self._image.block_size),
            queues=len(self.queue_sizes),
        )

    def notify(self, index: int) -> None:
        """As the base, but small reads of what the host has in memory are served at once.

        Handing one to another thread, and waking the vCPU again, takes longer than copying it.
        """
        if index >= len(self._locks) or self._scheduled[index] or not self._serve_at_once(index):
            super().notify(index)

    def _serve_at_once(self, index: int) -> bool:
        """Serve what needs no waiting; False when there is, or may be, more to do."""
        places, lock = self._image.in_place, self._locks[index]
        if places is None or not lock.acquire(blocking=False):
            return False
        try:
            queue = self._queues[index]
            if queue is None:
                return False
            served = places.serve(queue.memory, queue.ring(), AT_ONCE, wait=False)
            queue.served(served)
            if served and queue.needs_interrupt():
                self.transport.queue_interrupt(index)
            return served > 0 and not queue.enable_notifications()
        except GuestError:
            return False  # Whoever serves the queue next meets it too.
        finally:
            lock.release()

    def serve_batch(self, index: int, queue: Virtqueue, limit: int = BATCH) -> int:
        """As the base, but for reads and writes that the core carries out by itself."""
        places = self._image.in_place
        if places is None:
            return super().serve_batch(index, queue, limit)
        served = places.serve(queue.memory, queue.ring(), limit)
        if not served:
            # The one request that the core left, and then it is asked again.
            return super().serve_batch(index, queue, 1)
        queue.disable_notifications()
        queue.served(served)
        return served

    def handle(self, index: int, queue: Virtqueue, chain: DescriptorChain) -> int:
        """One request: 16 bytes of header, data, one status byte last.

        Raises:
            GuestError: There is no room for header or status, or memory is not RAM.
        """
        header, data_out = split_segments(chain.readable, c.HEADER.size)
        data_in, status = split_segments(chain.writable, chain.writable_size - 1)
        if chain.readable_size < c.HEADER.size or not status:
            raise GuestError("block request without a header or a status byte")
        kind, _, sector = c.HEADER.unpack(read_segments(queue.memory, header))
        written = 0
        try:
            result, written = self._carry_out(queue, kind, sector, data_out, data_in)
        except GuestError:
            raise
        except (OSError, SubletError) as error:
            self._report(error)
            result = c.S_IOERR
        queue.memory.write(status[0][0], bytes((result,)))
        return written + 1

    def _report(self, error: Exception) -> None:
        """Say why the guest sees I/O errors: once, since a guest may repeat the request for ever."""
        if not self._reported:
            self._reported = True
            _LOG.warning("a disk request failed, the guest sees an I/O error: %s", error)

    def _carry_out(
        self, queue: Virtqueue, kind: int, sector: int, data_out: list[Segment], data_in: list[Segment]
    ) -> tuple[int, int]:
        """Returns (status, bytes written to the guest before the status)."""
        if kind == c.T_IN:
            return self._read(queue, sector, data_in)
        if kind == c.T_OUT:
            return self._write(queue, sector, data_out), 0
        if kind == c.T_FLUSH:
            self._image.flush()
            return c.S_OK, 0
        if kind == c.T_GET_ID:
            return c.S_OK, write_segments(queue.memory, data_in, self._serial)
        if kind in (c.T_DISCARD, c.T_WRITE_ZEROES):
            return self._ranges(queue, kind, data_out), 0
        return c.S_UNSUPP, 0

    def _read(self, queue: Virtqueue, sector: int, segments: list[Segment]) -> tuple[int, int]:
        total = sum(length for _, length in segments)
        if not self._in_range(sector, total):
            return c.S_IOERR, 0
        offset = sector * c.SECTOR
        if total <= SMALL:
            return c.S_OK, write_segments(queue.memory, segments, self._image.read(offset, total))
        done = 0
        while done < total:
            size = min(PIECE, total - done)
            piece, segments = split_segments(segments, size)
            view = memoryview(self._buffer())[:size]
            self._image.readinto(offset + done, view)
            done += write_segments(queue.memory, piece, view)
        return c.S_OK, done

    def _buffer(self) -> bytearray:
        """``PIECE`` bytes of this thread's own, used again: new memory costs as much as filling it."""
        buffer: bytearray | None = getattr(self._buffers, "buffer", None)
        if buffer is None:
            buffer = self._buffers.buffer = bytearray(PIECE)
        return buffer

    def _write(self, queue: Virtqueue, sector: int, segments: list[Segment]) -> int:
        total = sum(length for _, length in segments)
        # §5.2.6.2: a device that offered VIRTIO_BLK_F_RO MUST fail writes with IOERR.
        if self._image.readonly or not self._in_range(sector, total):
            return c.S_IOERR
        offset = sector * c.SECTOR
        if total <= SMALL:
            self._image.write(offset, read_segments(queue.memory, segments))
            return c.S_OK
        while segments:
            piece, segments = split_segments(segments, PIECE)
            size = 0
            view = memoryview(self._buffer())
            for address, length in piece:
                queue.memory.read_into(address, view[size : size + length])
                size += length
            self._image.write(offset, view[:size])
            offset += size
        return c.S_OK

    def _in_range(self, sector: int, size: int) -> bool:
        whole = size % c.SECTOR == 0
        return whole and sector + size // c.SECTOR <= self._sectors

    def _ranges(self, queue: Virtqueue, kind: int, segments: list[Segment]) -> int:
        total = sum(length for _, length in segments)
        if self._image.readonly:
            return c.S_IOERR
        if not total or total % c.RANGE.size or total > c.RANGE.size * c.MAX_RANGES:
            return c.S_IOERR
        ranges = list(c.RANGE.iter_unpack(read_segments(queue.memory, segments)))
        for sector, count, flags in ranges:
            status = self._check_range(kind, sector, count, flags)
            if status != c.S_OK:
                return status
        for sector, count, flags in ranges:
            self._clear_range(kind, sector * c.SECTOR, count * c.SECTOR, bool(flags & c.WRITE_ZEROES_F_UNMAP))
        return c.S_OK

    def _check_range(self, kind: int, sector: int, count: int, flags: int) -> int:
        allowed = c.WRITE_ZEROES_F_UNMAP if kind == c.T_WRITE_ZEROES else 0
        if flags & ~allowed:
            return c.S_UNSUPP  # §5.2.6.2: unknown flags, or unmap in a discard, MUST be S_UNSUPP
        if count > c.MAX_RANGE_SECTORS or sector + count > self._sectors:
            return c.S_IOERR
        return c.S_OK

    def _clear_range(self, kind: int, offset: int, size: int, unmap: bool) -> None:
        if not size:
            return
        if kind == c.T_DISCARD:
            self._image.discard(offset, size)
        else:
            self._image.write_zeroes(offset, size, unmap=unmap)

    def resized(self) -> None:
        """The image has another size now: tell the driver."""
        self._sectors = self._image.size // c.SECTOR
        self.transport.config_interrupt()

    def close(self) -> None:
        """Flush and close the image, after the requests in flight."""
        self.reset()
        self._image.close()
