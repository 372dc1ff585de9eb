"""Which queue pair a packet for the guest goes to: the one that its flow was last sent from.

Reference: virtio 1.2 §5.1.6.5.6 "Automatic receive steering in multiqueue mode".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from sublet.net import HEADER_SIZE
from sublet.net.offload import find_layout

_BUCKETS: Final = 1024
_HEADERS: Final = 128
"""Bytes of a frame in which the addresses and ports are."""


class Steering:
    """A table from flows, hashed, to queue pairs. Two flows in one bucket share its pair."""

    def __init__(self) -> None:
        self._pairs = bytearray(_BUCKETS)

    def learn(self, packets: Sequence[bytes], pair: int) -> None:
        """Remember that these were sent from ``pair``."""
        for packet in packets:
            self._pairs[_bucket(packet)] = pair

    def runs(self, packets: Sequence[bytes], pairs: int) -> Iterator[tuple[int, Sequence[bytes]]]:
        """Cut a batch into runs for one pair each; ``pairs`` are active."""
        start = 0
        current = -1
        for index, packet in enumerate(packets):
            pair = self._pairs[_bucket(packet)] % pairs
            if pair != current and index > start:
                yield current, packets[start:index]
                start = index
            current = pair
        if packets:
            yield current, packets[start:]


def _bucket(packet: bytes) -> int:
    """The bucket of a packet's flow, the same for both directions."""
    frame = packet[HEADER_SIZE : HEADER_SIZE + _HEADERS]
    layout = find_layout(frame)
    if layout is None:
        return 0
    size = 4 if layout.version == 4 else 16
    addresses = layout.network + (12 if layout.version == 4 else 8)
    source = int.from_bytes(frame[addresses : addresses + size], "big")
    destination = int.from_bytes(frame[addresses + size : addresses + 2 * size], "big")
    ports = int.from_bytes(frame[layout.transport : layout.transport + 2], "big")
    ports += int.from_bytes(frame[layout.transport + 2 : layout.transport + 4], "big")
    return (source + destination + 7 * ports) % 1021 % _BUCKETS
