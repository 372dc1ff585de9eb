"""The console: one port, which Linux calls ``hvc0``.

Reference: virtio 1.2 §5.3.6 "Device Operation".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from sublet.devices.virtio.console import config as c
from sublet.devices.virtio.device import VirtioDevice
from sublet.devices.virtio.queue import (
    DescriptorChain,
    Virtqueue,
    read_segments,
    split_segments,
    write_segments,
)
from sublet.hw import Executor

QUEUE_SIZE = 128
INPUT_LIMIT = 256 * 1024
"""Bytes kept for the guest before ``receive`` accepts no more."""
PIECE = 64 * 1024
"""Bytes of output handed on at once."""


class VirtioConsole(VirtioDevice):
    """Text both ways. Input waits in a bounded buffer until the driver supplies room for it.

    Args:
        write: Receives output, on the executor; may block, which holds this device's queue back.
        executor: Where queues are served.
        columns, rows: Size of the terminal in characters; 0 for unknown.
    """

    device_type = c.DEVICE_TYPE
    pci_class = c.PCI_CLASS

    def __init__(
        self, write: Callable[[bytes], None], executor: Executor, *, columns: int = 80, rows: int = 25
    ) -> None:
        super().__init__(executor, [QUEUE_SIZE, QUEUE_SIZE])
        self._write = write
        self._size = (columns, rows)
        self._input = bytearray()
        self._input_lock = threading.Lock()

    @property
    def offered_features(self) -> int:
        """Size and emergency write."""
        return c.F_SIZE | c.F_EMERG_WRITE

    def config(self) -> bytes:
        """``struct virtio_console_config``."""
        return c.pack_config(*self._size)

    def write_config(self, offset: int, data: bytes) -> None:
        """A character written to ``emerg_wr`` is output at once, even before the driver is up."""
        if offset == c.EMERGENCY_OFFSET:
            self._write(data[:1])

    def receive(self, data: bytes) -> int:
        """Type ``data`` to the guest; returns how many bytes were accepted."""
        with self._input_lock:
            accepted = data[: max(INPUT_LIMIT - len(self._input), 0)]
            self._input += accepted
        if accepted:
            self.notify(c.RECEIVE_QUEUE)
        return len(accepted)

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has another size now: tell the driver."""
        self._size = (columns, rows)
        self.transport.config_interrupt()

    def process(self, index: int, queue: Virtqueue) -> None:
        """Output is served like any queue; input only as far as there is some."""
        if index == c.TRANSMIT_QUEUE:
            super().process(index, queue)
            return
        self._deliver_input(queue)
        if queue.needs_interrupt():
            self.transport.queue_interrupt(index)

    def _deliver_input(self, queue: Virtqueue) -> None:
        for _ in range(QUEUE_SIZE):
            chain = queue.pop() if self._input else None
            if chain is not None:
                queue.push(chain.head, self._fill(queue, chain))
            elif not self._input or not queue.enable_notifications():
                return
        self.schedule(c.RECEIVE_QUEUE)

    def _fill(self, queue: Virtqueue, chain: DescriptorChain) -> int:
        with self._input_lock:
            data = bytes(self._input[: chain.writable_size])
            del self._input[: len(data)]
        return write_segments(queue.memory, chain.writable, data)

    def handle(self, index: int, queue: Virtqueue, chain: DescriptorChain) -> int:
        """Output of one chain, piece by piece."""
        segments = chain.readable
        while segments:
            piece, segments = split_segments(segments, PIECE)
            self._write(read_segments(queue.memory, piece))
        return 0

    def save_state(self) -> dict[str, Any]:
        """Input that the guest has not seen."""
        with self._input_lock:
            return {"input": bytes(self._input)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        with self._input_lock:
            self._input = bytearray(state["input"])
