"""Both ends of the packet contract, without threads."""

from __future__ import annotations

import queue
from collections.abc import Sequence

from sublet.net import ALL_OFFLOADS, HEADER_SIZE, Offload, PacketReceiver, PacketSink, from_frame


class FakeSink:
    """Keeps what the card sends, as far as ``room`` goes (``net.PacketSink``)."""

    def __init__(self, offloads: Offload = ALL_OFFLOADS) -> None:
        self.offloads = offloads
        self.sent: list[bytes] = []
        self.room = 1 << 30
        self.guest_offloads = Offload.NONE
        self.ready = 0
        """How often the card said that the guest has room again."""
        self.closed = False
        self._receiver: PacketReceiver | None = None

    def attach(self, receiver: PacketReceiver) -> None:
        """Remember the card."""
        self._receiver = receiver

    @property
    def card(self) -> PacketReceiver:
        """What was attached."""
        assert self._receiver is not None, "a card is attached"
        return self._receiver

    @property
    def frames(self) -> list[bytes]:
        """What was sent, without headers."""
        return [packet[HEADER_SIZE:] for packet in self.sent]

    def deliver(self, *frames: bytes) -> int:
        """Complete frames for the guest; returns how many the card took."""
        return self.card.receive([from_frame(frame) for frame in frames])

    def set_guest_offloads(self, offloads: Offload) -> None:
        """Remember them."""
        self.guest_offloads = offloads

    def send(self, packets: Sequence[bytes]) -> int:
        """Take as many as there is room for."""
        taken = min(self.room, len(packets))
        self.sent += packets[:taken]
        self.room -= taken
        return taken

    def receive_ready(self) -> None:
        """Count the call."""
        self.ready += 1

    def statistics(self) -> dict[str, int]:
        """Nothing is counted."""
        return {}

    def close(self) -> None:
        """Remember it."""
        self.closed = True


class FakeCard:
    """Takes what a sink delivers, as far as ``room`` goes (``net.PacketReceiver``)."""

    def __init__(self, sink: PacketSink) -> None:
        self.packets: queue.Queue[bytes] = queue.Queue()
        self.room = 1 << 30
        self.send_calls: queue.Queue[None] = queue.Queue()
        self.carrier: queue.Queue[bool] = queue.Queue()
        self.sink = sink
        sink.attach(self)

    def receive(self, packets: Sequence[bytes]) -> int:
        """Take as many as there is room for."""
        taken = min(self.room, len(packets))
        for packet in packets[:taken]:
            self.packets.put(packet)
        self.room -= taken
        return taken

    def frame(self, timeout_s: float = 20.0) -> bytes:
        """The next frame delivered, without its header."""
        return self.packets.get(timeout=timeout_s)[HEADER_SIZE:]

    def send(self, *frames: bytes) -> int:
        """Complete frames into the sink; returns how many it took."""
        return self.sink.send([from_frame(frame) for frame in frames])

    def send_ready(self) -> None:
        """Count the call."""
        self.send_calls.put(None)

    def set_carrier(self, up: bool) -> None:
        """Remember it."""
        self.carrier.put(up)
