"""The network device: Ethernet frames between a driver and a packet sink.

Reference: virtio 1.2 §5.1.6 "Device Operation".
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from sublet.devices.virtio.device import VirtioDevice
from sublet.devices.virtio.net import config as c
from sublet.devices.virtio.queue import DescriptorChain, Virtqueue, read_segments, write_segments
from sublet.errors import GuestError
from sublet.hw import Executor
from sublet.net import MAX_FRAME_SIZE, MIN_FRAME_SIZE, PacketSink

QUEUE_SIZE = 256
BACKLOG = 256
"""Frames that wait for receive buffers; more are dropped, as on a wire."""


class VirtioNet(VirtioDevice):
    """One Ethernet interface. Frames that do not fit, and frames while the link is down, are dropped.

    Args:
        sink: Takes the guest's frames and delivers the others'; closed by ``close``.
        executor: Where queues are served.
        mac: Six bytes, a unicast address.
        mtu: 68 to 65521 bytes of payload.
    """

    device_type = c.DEVICE_TYPE
    pci_class = c.PCI_CLASS

    def __init__(self, sink: PacketSink, executor: Executor, *, mac: bytes, mtu: int = 1500) -> None:
        super().__init__(executor, [QUEUE_SIZE, QUEUE_SIZE])
        if len(mac) != 6 or mac[0] & 1:
            raise ValueError(f"{mac.hex(':')} is not a unicast MAC address")
        self.mac = mac
        self.dropped = 0
        self._mtu = mtu
        self._link_up = True
        self._sink = sink
        self._backlog: deque[bytes] = deque()
        self._backlog_lock = threading.Lock()
        sink.attach(self.deliver)

    @property
    def offered_features(self) -> int:
        """Address, link status, MTU and mergeable receive buffers; no offloads."""
        return c.F_MAC | c.F_STATUS | c.F_MTU | c.F_MRG_RXBUF

    def config(self) -> bytes:
        """``struct virtio_net_config``."""
        return c.pack_config(self.mac, self._link_up, self._mtu)

    def set_link(self, up: bool) -> None:
        """Plug or pull the cable."""
        if up != self._link_up:
            self._link_up = up
            self.transport.config_interrupt()

    def deliver(self, frame: bytes) -> bool:
        """A frame for the guest. Any thread; never blocks.

        Returns:
            Whether it was taken; False: the guest has no room (dropped and counted).
        """
        taken = self._enqueue(frame)
        if taken:
            self.notify(c.RECEIVE_QUEUE)
        else:
            self.dropped += 1
        return taken

    def _enqueue(self, frame: bytes) -> bool:
        wanted = self._link_up and MIN_FRAME_SIZE <= len(frame) <= MAX_FRAME_SIZE
        with self._backlog_lock:
            if not wanted or self._queues[c.RECEIVE_QUEUE] is None or len(self._backlog) >= BACKLOG:
                return False
            self._backlog.append(frame)
            return True

    def process(self, index: int, queue: Virtqueue) -> None:
        """Transmit like any queue; receive as far as there are frames and buffers."""
        if index == c.TRANSMIT_QUEUE:
            super().process(index, queue)
            return
        while self._backlog and self._receive(queue, self._backlog[0]):
            with self._backlog_lock:
                self._backlog.popleft()
        if queue.needs_interrupt():
            self.transport.queue_interrupt(index)

    def _receive(self, queue: Virtqueue, frame: bytes) -> bool:
        """Put a frame into one buffer, or several when they may be merged; False when they lack."""
        data = c.pack_header(1) + frame
        chains = self._take_buffers(queue, len(data))
        if not chains:
            return False
        if len(chains) > 1:
            data = c.pack_header(len(chains)) + frame
        used = []
        for chain in chains:
            written = write_segments(queue.memory, chain.writable, data)
            used.append((chain.head, written))
            data = data[written:]
        queue.push_batch(used)
        return True

    def _take_buffers(self, queue: Virtqueue, size: int) -> list[DescriptorChain]:
        """Chains with room for ``size`` bytes, or none of them until the driver has added more."""
        chains: list[DescriptorChain] = []
        room = 0
        while room < size:
            chain = queue.pop()
            if chain is not None:
                room += self._check_buffer(chain, room, size)
                chains.append(chain)
            elif not queue.enable_notifications():
                # Only now, so that the driver is to notify of what comes after those seen.
                queue.undo_pop(len(chains))
                return []
        return chains

    def _check_buffer(self, chain: DescriptorChain, room: int, size: int) -> int:
        """The chain's room; a packet must not need several buffers unless they may be merged."""
        added = chain.writable_size
        if added < c.HEADER_SIZE or (room + added < size and not self.features & c.F_MRG_RXBUF):
            raise GuestError(f"receive buffer of {added} bytes for a packet of {size}")
        return added

    def handle(self, index: int, queue: Virtqueue, chain: DescriptorChain) -> int:
        """Transmit one packet: header and frame."""
        size = chain.readable_size
        if size < c.HEADER_SIZE + MIN_FRAME_SIZE or size > c.HEADER_SIZE + MAX_FRAME_SIZE:
            self.dropped += 1
        else:
            packet = read_segments(queue.memory, chain.readable)
            if self._link_up:
                self._sink.send(packet[c.HEADER_SIZE :])
        return 0

    def reset(self) -> None:
        """Also drops the frames that wait."""
        super().reset()
        with self._backlog_lock:
            self._backlog.clear()

    def save_state(self) -> dict[str, Any]:
        """The link; frames on the wire may be lost."""
        return {"link_up": self._link_up}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._link_up = state["link_up"]

    def close(self) -> None:
        """Stop and close the sink."""
        self.reset()
        self._sink.close()
