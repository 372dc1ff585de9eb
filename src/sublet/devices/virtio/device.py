"""What a virtio device is to its transport, and how its queues are served off the vCPU's thread.

Reference: virtio 1.2 §2 "Basic Facilities of a Virtio Device".
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any, Protocol

from sublet.devices.virtio.queue import DescriptorChain, Virtqueue
from sublet.errors import GuestError
from sublet.hw import Executor

F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_VERSION_1 = 1 << 32
TRANSPORT_FEATURES = F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1
"""Offered by every device. Neither RING_PACKED nor the legacy interface is."""

BATCH = 16
"""Chains handled between two looks at whether to interrupt."""
ROUNDS = 64
"""Batches handled before other devices on the same worker get their turn."""


class Transport(Protocol):
    """How a device reaches its driver. Any thread."""

    def queue_interrupt(self, index: int) -> None:
        """Used buffers are in queue ``index``."""

    def config_interrupt(self) -> None:
        """The device's configuration has changed."""

    def needs_reset(self, reason: str) -> None:
        """The driver broke a rule: set DEVICE_NEEDS_RESET and tell it (virtio 1.2 §2.1.2)."""


class NoTransport:
    """Stands in until a transport adopts the device."""

    def queue_interrupt(self, index: int) -> None:
        """Dropped."""

    def config_interrupt(self) -> None:
        """Dropped."""

    def needs_reset(self, reason: str) -> None:
        """Dropped."""


class VirtioDevice:
    """Base of the devices. A subclass overrides ``handle`` (or ``process``) and the configuration.

    Threads: the transport calls ``notify`` on vCPU threads; ``process`` runs on the executor with the
    queue's lock held. Lock order: the transport's register lock, then queue locks by index, then the
    transport's interrupt lock. ``reset`` therefore waits for a batch in flight.

    Args:
        executor: Where queues are served.
        queue_sizes: Largest size of each queue.
    """

    device_type = 0
    """virtio 1.2 §5 device type."""
    pci_class = 0xFF0000
    """24-bit PCI class code."""

    def __init__(self, executor: Executor, queue_sizes: Sequence[int]) -> None:
        self.transport: Transport = NoTransport()
        self.queue_sizes = tuple(queue_sizes)
        self.features = 0
        self._executor = executor
        count = len(self.queue_sizes)
        self._queues: list[Virtqueue | None] = [None] * count
        self._locks = [threading.Lock() for _ in range(count)]
        self._scheduled = [False] * count
        self._jobs = [functools.partial(self._serve, index) for index in range(count)]

    # What subclasses say

    @property
    def offered_features(self) -> int:
        """Device-type feature bits (the transport adds its own)."""
        return 0

    def config(self) -> bytes:
        """The device-specific configuration structure as it is now."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """A driver's write to the configuration; ignored unless the device has writable fields."""

    def handle(self, index: int, queue: Virtqueue, chain: DescriptorChain) -> int:
        """Carry out one request and return the bytes written into its writable part."""
        raise NotImplementedError

    def process(self, index: int, queue: Virtqueue) -> None:
        """Serve a queue until it is empty; on the executor, with the queue's lock held."""
        for _ in range(ROUNDS):
            if not self.serve_batch(index, queue):
                if not queue.enable_notifications():
                    return
                continue
            if queue.needs_interrupt():
                self.transport.queue_interrupt(index)
        self.schedule(index)

    def serve_batch(self, index: int, queue: Virtqueue, limit: int = BATCH) -> int:
        """Take up to ``limit`` requests, carry them out and return them to the driver; how many."""
        chains = queue.pop_batch(limit)
        if chains:
            queue.disable_notifications()
            queue.push_batch([(chain.head, self.handle(index, queue, chain)) for chain in chains])
        return len(chains)

    # What the transport calls

    def activate(self, queues: Sequence[Virtqueue | None], features: int) -> None:
        """DRIVER_OK: these queues are live (None: not enabled), these features negotiated."""
        self.features = features
        for index, queue in enumerate(queues):
            with self._locks[index]:
                self._queues[index] = queue
        # A driver may have made buffers available before DRIVER_OK; its notification counted then.
        for index in range(len(queues)):
            self.schedule(index)

    def notify(self, index: int) -> None:
        """The driver made buffers available. vCPU thread."""
        if index < len(self._jobs) and self._queues[index] is not None:
            self.schedule(index)

    def schedule(self, index: int) -> None:
        """Have ``process`` called once more; cheap when that is due anyway."""
        if not self._scheduled[index]:
            self._scheduled[index] = True
            self._executor.submit(self._jobs[index])

    def _serve(self, index: int) -> None:
        # Cleared first: a notification from here on schedules another round, so none is lost.
        self._scheduled[index] = False
        with self._locks[index]:
            queue = self._queues[index]
            if queue is None:
                return
            try:
                self.process(index, queue)
            except GuestError as error:
                self._queues[index] = None
                self.transport.needs_reset(str(error))

    def queue_states(self) -> list[dict[str, Any] | None]:
        """Positions of the live queues, for the transport's snapshot."""
        states: list[dict[str, Any] | None] = []
        for lock, queue in zip(self._locks, self._queues, strict=True):
            with lock:
                states.append(queue.save_state() if queue is not None else None)
        return states

    def reset(self) -> None:
        """Forget the driver: queues, features and requests; waits for a batch in flight."""
        for index, lock in enumerate(self._locks):
            with lock:
                self._queues[index] = None
        self.features = 0

    def save_state(self) -> dict[str, Any]:
        """Device-specific state; queues and features are the transport's to save."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""

    def close(self) -> None:
        """Release what the device holds on the host. Idempotent."""
