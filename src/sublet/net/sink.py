"""The contract between a network card and what carries its packets.

    card ── send ──────────▶ sink        sink ── receive ──────▶ card
    card ◀── send_ready ──── sink        sink ◀── receive_ready ── card

Both directions take batches and say how much they took; who took less calls ``…_ready`` when it has room
again, so nobody queues for another and nothing is lost between them. ``…_ready`` only wakes somebody: it
never delivers packets on the caller's thread, because the caller holds the lock of a queue.

Packets are as ``sublet.net.packet`` has them: a 12-byte header and a frame, in one ``bytes``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from sublet.net.packet import ALL_OFFLOADS, Offload


class PacketReceiver(Protocol):
    """The card. Every method may be called from any thread, and none blocks."""

    def receive(self, packets: Sequence[bytes]) -> int:
        """Packets for the guest.

        Returns:
            How many of them, from the first on, are done with: given to the guest, or dropped as the
            card drops them (link down, no driver, filtered). When fewer than all, ``receive_ready``
            follows as soon as the guest has room.
        """

    def send_ready(self) -> None:
        """The sink has room again, after ``send`` took fewer than all."""

    def set_carrier(self, up: bool) -> None:
        """The cable was plugged in or pulled out at the other end."""


class PacketSink(Protocol):
    """Carries packets. Implementations bound what they queue."""

    @property
    def offloads(self) -> Offload:
        """What ``send`` takes undone; constant from construction on."""

    def attach(self, receiver: PacketReceiver) -> None:
        """Deliver to ``receiver`` from now on. Called once."""

    def set_guest_offloads(self, offloads: Offload) -> None:
        """What the guest takes undone from now on, none before. Any thread.

        A hint that saves work: the card does in software what the guest does not take.
        """

    def send(self, packets: Sequence[bytes]) -> int:
        """Packets from the guest; never called concurrently.

        Returns:
            How many, from the first on, were taken. When fewer than all, the sink calls
            ``send_ready`` as soon as it takes more. What a sink drops counts as taken.
        """

    def receive_ready(self) -> None:
        """The guest has room again, after ``receive`` took fewer than all."""

    def statistics(self) -> dict[str, int]:
        """Counters by name, such as ``dropped.spoofed``; they only grow."""

    def close(self) -> None:
        """Deliver no more and release everything. Idempotent."""


@runtime_checkable
class Inspectable(Protocol):
    """A sink that knows more than counters."""

    def inspect(self, what: str) -> list[dict[str, Any]]:
        """Rows for people: ``leases``, ``flows``, ``ports`` ...; none of what it does not know."""


class NullSink:
    """A cable to nowhere."""

    @property
    def offloads(self) -> Offload:
        """Everything: what is dropped needs no checksum."""
        return ALL_OFFLOADS

    def attach(self, receiver: PacketReceiver) -> None:
        """Nothing is ever delivered."""

    def set_guest_offloads(self, offloads: Offload) -> None:
        """Nothing is ever delivered."""

    def send(self, packets: Sequence[bytes]) -> int:
        """Dropped."""
        return len(packets)

    def receive_ready(self) -> None:
        """Nothing is ever delivered."""

    def statistics(self) -> dict[str, int]:
        """Nothing is counted."""
        return {}

    def close(self) -> None:
        """Nothing to release."""
