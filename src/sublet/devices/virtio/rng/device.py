"""The entropy device, with a bound on how much a guest can make the host produce.

Reference: virtio 1.2 §5.4.6 "Device Operation".
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from sublet.devices.virtio.device import VirtioDevice
from sublet.devices.virtio.queue import DescriptorChain, Virtqueue, write_segments
from sublet.devices.virtio.rng import config as c
from sublet.hw import Clock, Executor

QUEUE_SIZE = 64
MAX_REQUEST = 4096
"""Bytes supplied to one request; a driver that wants more asks again."""
BYTES_PER_SECOND = 1 << 20
BURST = 1 << 16


def _after(delay_s: float, work: Callable[[], None]) -> None:
    timer = threading.Timer(delay_s, work)
    timer.daemon = True
    timer.start()


class VirtioRng(VirtioDevice):
    """Fills buffers with random bytes, ``BYTES_PER_SECOND`` at most after a first ``BURST``.

    Args:
        executor: Where the queue is served.
        clock: Measures the rate.
        source: Supplies random bytes.
        after: Calls back once after a delay in seconds; used while the rate is exhausted.
    """

    device_type = c.DEVICE_TYPE
    pci_class = c.PCI_CLASS

    def __init__(
        self,
        executor: Executor,
        clock: Clock,
        *,
        source: Callable[[int], bytes] = os.urandom,
        after: Callable[[float, Callable[[], None]], None] = _after,
    ) -> None:
        super().__init__(executor, [QUEUE_SIZE])
        self._clock = clock
        self._source = source
        self._after = after
        self._resuming = False
        self._credit = BURST
        self._credit_time_ns = clock.now_ns()

    def process(self, index: int, queue: Virtqueue) -> None:
        """Serve while there is credit; then come back later."""
        self._earn_credit()
        while self._credit >= MAX_REQUEST:
            chain = queue.pop()
            if chain is None:
                if not queue.enable_notifications():
                    break
                continue
            queue.push(chain.head, self.handle(index, queue, chain))
        else:
            self._resume_later(index)
        if queue.needs_interrupt():
            self.transport.queue_interrupt(index)

    def _resume_later(self, index: int) -> None:
        if not self._resuming:
            self._resuming = True
            self._after(BURST / BYTES_PER_SECOND, lambda: self._resume(index))

    def _resume(self, index: int) -> None:
        self._resuming = False
        self.notify(index)

    def _earn_credit(self) -> None:
        now_ns = self._clock.now_ns()
        earned = (now_ns - self._credit_time_ns) * BYTES_PER_SECOND // 1_000_000_000
        self._credit = min(BURST, self._credit + earned)
        self._credit_time_ns = now_ns

    def handle(self, index: int, queue: Virtqueue, chain: DescriptorChain) -> int:
        """Random bytes for one request; also the ones that ask for nothing cost credit."""
        size = min(chain.writable_size, MAX_REQUEST)
        self._credit -= max(size, 1)
        return write_segments(queue.memory, chain.writable, self._source(size)) if size else 0
