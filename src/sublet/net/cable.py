"""What lies between a card and its sink: the place where packets are seen, lost and delayed."""

from __future__ import annotations

import enum
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from sublet.net.packet import Offload
from sublet.net.sink import Inspectable, PacketReceiver, PacketSink


class Direction(enum.Enum):
    """As the guest sees it."""

    INBOUND = "in"
    OUTBOUND = "out"


class Observer(Protocol):
    """Sees what passes; must not block. Any thread."""

    def passed(self, direction: Direction, packets: Sequence[bytes]) -> None: ...
    def dropped(self, direction: Direction, packet: bytes, reason: str) -> None: ...


class Cable:
    """A sink to the card and a card to the sink, which hands everything on and shows it to observers.

    Args:
        sink: What it leads to; closed with it.
    """

    def __init__(self, sink: PacketSink) -> None:
        self.sink = sink
        self._receiver: PacketReceiver | None = None
        self._observers: tuple[Observer, ...] = ()
        self._changing = threading.Lock()
        self._drops: Counter[str] = Counter()

    # Observers

    def watch(self, observer: Observer) -> None:
        """Show everything to ``observer`` from now on."""
        with self._changing:
            self._observers = (*self._observers, observer)

    def unwatch(self, observer: Observer) -> None:
        """Show it no more. Idempotent."""
        with self._changing:
            self._observers = tuple(other for other in self._observers if other is not observer)

    def note_drop(self, direction: Direction, packet: bytes, reason: str) -> None:
        """Count and show a packet that goes nowhere."""
        self._drops[f"dropped.{reason}"] += 1
        for observer in self._observers:
            observer.dropped(direction, packet, reason)

    def _show(self, direction: Direction, packets: Sequence[bytes]) -> None:
        for observer in self._observers:
            observer.passed(direction, packets)

    # Towards the sink

    @property
    def offloads(self) -> Offload:
        """The sink's."""
        return self.sink.offloads

    def attach(self, receiver: PacketReceiver) -> None:
        """Plug the card in."""
        self._receiver = receiver
        self.sink.attach(self)

    def set_guest_offloads(self, offloads: Offload) -> None:
        """Told to the sink."""
        self.sink.set_guest_offloads(offloads)

    def send(self, packets: Sequence[bytes]) -> int:
        """To the sink."""
        taken = self.sink.send(packets)
        if self._observers and taken:
            self._show(Direction.OUTBOUND, packets[:taken])
        return taken

    def receive_ready(self) -> None:
        """To the sink."""
        self.sink.receive_ready()

    def statistics(self) -> dict[str, int]:
        """The sink's counters, and what was dropped here."""
        return {**self._drops, **self.sink.statistics()}

    def inspect(self, what: str) -> list[dict[str, Any]]:
        """What the sink knows of ``what``; nothing if it is of a kind that does not."""
        return self.sink.inspect(what) if isinstance(self.sink, Inspectable) else []

    def close(self) -> None:
        """Unplug, and close the sink."""
        self.sink.close()

    # Towards the card

    @property
    def receiver(self) -> PacketReceiver:
        """The card."""
        assert self._receiver is not None, "a sink delivers only once it is attached"
        return self._receiver

    def receive(self, packets: Sequence[bytes]) -> int:
        """To the card."""
        taken = self.receiver.receive(packets)
        if self._observers and taken:
            self._show(Direction.INBOUND, packets[:taken])
        return taken

    def send_ready(self) -> None:
        """To the card."""
        self.receiver.send_ready()

    def set_carrier(self, up: bool) -> None:
        """To the card."""
        self.receiver.set_carrier(up)
