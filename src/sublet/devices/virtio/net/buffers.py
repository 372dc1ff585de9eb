"""A receive queue's buffers while a batch of packets is laid into them."""

from __future__ import annotations

from collections import deque
from typing import Final

from sublet.devices.virtio.queue import DescriptorChain, Virtqueue
from sublet.errors import GuestError

_AT_ONCE: Final = 16
"""Chains looked up together."""


class ReceiveBuffers:
    """Chains in the driver's order; what is not needed goes back. Used with the queue's lock held.

    Args:
        queue: Where they come from.
        least: Bytes that every chain must have room for.
    """

    def __init__(self, queue: Virtqueue, least: int) -> None:
        self._queue = queue
        self._least = least
        self._spare: deque[DescriptorChain] = deque()

    def take(self) -> DescriptorChain | None:
        """The next chain; None when there is none, and the driver is to notify of the next.

        Raises:
            GuestError: The driver broke a rule, or the buffer is too small.
        """
        while not self._spare:
            self._spare.extend(self._queue.pop_batch(_AT_ONCE))
            if not self._spare and not self._queue.enable_notifications():
                return None
        if self._spare[0].writable_size < self._least:
            raise GuestError(f"receive buffer of {self._spare[0].writable_size} bytes")
        return self._spare.popleft()

    def put_back(self, chains: list[DescriptorChain]) -> None:
        """The chains taken last, in the order in which they were taken."""
        self._spare.extendleft(reversed(chains))

    def close(self) -> None:
        """Leave the rest to the next batch."""
        self._queue.undo_pop(len(self._spare))
        self._spare.clear()
