"""The contract between a network device and whatever carries its frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

MIN_FRAME_SIZE = 14
"""Bytes of an Ethernet header; frames come without preamble, padding and checksum."""
MAX_FRAME_SIZE = 65550
"""Bytes: an Ethernet header, a VLAN tag and the largest IPv4 packet, rounded up."""

FrameReceiver = Callable[[bytes], bool]
"""Takes a frame without blocking; False when it was dropped."""


class PacketSink(Protocol):
    """Carries frames. Implementations bound what they queue and drop the rest."""

    def attach(self, receive: FrameReceiver) -> None:
        """Deliver frames for the guest to ``receive``, from any thread, from now on."""

    def send(self, frame: bytes) -> None:
        """Take a frame from the guest; called on a device's worker, never concurrently."""

    def close(self) -> None:
        """Deliver no more and release everything. Idempotent."""


class NullSink:
    """A cable to nowhere."""

    def attach(self, receive: FrameReceiver) -> None:
        """Nothing is ever delivered."""

    def send(self, frame: bytes) -> None:
        """Dropped."""

    def close(self) -> None:
        """Nothing to release."""
