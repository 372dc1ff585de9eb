"""A bad line: bandwidth, delay, jitter, loss, reordering and duplicates, the same for the same seed.

Each direction is a line of its own. A packet waits for its turn at the line's rate, then for the delay;
what is lost, doubled or let past the others is decided when it arrives, from a random sequence that
depends only on the seed, the direction and the packets before it.
"""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sublet.hw import Clock
from sublet.net.cable import Cable, Direction
from sublet.net.options import NetOptions
from sublet.net.packet import HEADER_SIZE
from sublet.net.sink import PacketSink

_NS: Final = 1_000_000_000
_BATCH: Final = 64


@dataclass(frozen=True)
class Impairment:
    """What a line does, in each direction."""

    rate: int = 0
    """Bits of frames a second; 0 for no limit."""
    delay_ns: int = 0
    jitter_ns: int = 0
    """The delay is up to this much more or less, each delay as likely as any other."""
    loss: float = 0.0
    """Probability, as the others."""
    reorder: float = 0.0
    """Of overtaking the packets that are being delayed."""
    duplicate: float = 0.0
    limit: int = 1000
    """Packets on the line; what comes beyond is dropped."""
    seed: int = 0

    @classmethod
    def from_options(cls, options: NetOptions) -> Impairment | None:
        """Those that the user gave; None for a good line."""
        impairment = cls(
            rate=options.bit_rate("rate"),
            delay_ns=options.duration_ns("delay"),
            jitter_ns=options.duration_ns("jitter"),
            loss=options.fraction("loss"),
            reorder=options.fraction("reorder"),
            duplicate=options.fraction("duplicate"),
            limit=options.integer("limit", 1000, 1, 100_000),
            seed=options.integer("seed", 0, 0, 2**32 - 1),
        )
        if impairment.jitter_ns > impairment.delay_ns:
            raise options.error("jitter", "cannot be more than the delay")
        if impairment.reorder and not impairment.delay_ns:
            raise options.error("reorder", "needs a delay")
        return impairment if impairment != cls(limit=impairment.limit, seed=impairment.seed) else None


class Line:
    """One direction. Not thread-safe.

    Args:
        impairment: What it does to packets.
        direction: Part of the random sequence's seed.
    """

    def __init__(self, impairment: Impairment, direction: Direction) -> None:
        self._impairment = impairment
        self._random = random.Random(f"{impairment.seed}/{direction.value}")
        self._waiting: list[tuple[int, int, bytes]] = []
        self._arrived: list[bytes] = []
        self._sequence = 0
        self._free_at_ns = 0
        """When the line has sent everything so far."""

    def put(self, packet: bytes, now_ns: int) -> str | None:
        """Let a packet in; the reason when it is dropped."""
        impairment = self._impairment
        # The same number of draws for every packet, so that one decision does not shift the next.
        lost, overtakes, doubled, shift = (self._random.random() for _ in range(4))
        if lost < impairment.loss:
            return "loss"
        if len(self._waiting) >= impairment.limit:
            return "line_full"
        self._free_at_ns = max(self._free_at_ns, now_ns) + self._sending_ns(packet)
        delay = impairment.delay_ns + round((2 * shift - 1) * impairment.jitter_ns)
        due = self._free_at_ns + (0 if overtakes < impairment.reorder else delay)
        for _ in range(2 if doubled < impairment.duplicate else 1):
            self._sequence += 1
            heapq.heappush(self._waiting, (due, self._sequence, packet))
        return None

    def _sending_ns(self, packet: bytes) -> int:
        rate = self._impairment.rate
        return (len(packet) - HEADER_SIZE) * 8 * _NS // rate if rate else 0

    def arrived(self, now_ns: int) -> list[bytes]:
        """A batch of the packets that are at the other end by now, in order; the same until ``taken``."""
        while self._waiting and self._waiting[0][0] <= now_ns and len(self._arrived) < _BATCH:
            self._arrived.append(heapq.heappop(self._waiting)[2])
        return list(self._arrived)

    def taken(self, count: int) -> None:
        """The first ``count`` of those that arrived are off the line."""
        del self._arrived[:count]

    @property
    def next_ns(self) -> int | None:
        """When the next packet arrives, 0 when one has; None when the line is empty."""
        if self._arrived:
            return 0
        return self._waiting[0][0] if self._waiting else None


class ImpairedCable(Cable):
    """A cable with two bad lines, and a thread that sleeps until a packet is due."""

    def __init__(self, sink: PacketSink, impairment: Impairment, clock: Clock) -> None:
        super().__init__(sink)
        self._clock = clock
        self._lines = {direction: Line(impairment, direction) for direction in Direction}
        self._blocked: set[Direction] = set()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._serve, name="cable", daemon=True)
        self._thread.start()

    def send(self, packets: Sequence[bytes]) -> int:
        """Onto the line."""
        return self._put(Direction.OUTBOUND, packets)

    def receive(self, packets: Sequence[bytes]) -> int:
        """Onto the line."""
        return self._put(Direction.INBOUND, packets)

    def _put(self, direction: Direction, packets: Sequence[bytes]) -> int:
        now = self._clock.now_ns()
        with self._changed:
            lost = [(packet, self._lines[direction].put(packet, now)) for packet in packets]
            self._changed.notify()
        for packet, reason in lost:
            if reason is not None:
                self.note_drop(direction, packet, reason)
        return len(packets)

    def send_ready(self) -> None:
        """The sink has room again."""
        self._unblock(Direction.OUTBOUND)

    def receive_ready(self) -> None:
        """The card has room again."""
        self._unblock(Direction.INBOUND)

    def _unblock(self, direction: Direction) -> None:
        with self._changed:
            self._blocked.discard(direction)
            self._changed.notify()

    def _serve(self) -> None:
        while True:
            with self._changed:
                if self._stopped:
                    return
                batches = self._arrived()
                if not batches:
                    self._changed.wait(self._wait_s())
                    continue
            for direction, packets in batches:
                self._forward(direction, packets)

    def _arrived(self) -> list[tuple[Direction, list[bytes]]]:
        """What can go on now. Only this thread takes packets off the lines."""
        now = self._clock.now_ns()
        ready = [(d, line.arrived(now)) for d, line in self._lines.items() if d not in self._blocked]
        return [(direction, packets) for direction, packets in ready if packets]

    def _wait_s(self) -> float | None:
        times = [line.next_ns for d, line in self._lines.items() if d not in self._blocked]
        pending = [time for time in times if time is not None]
        return max(min(pending) - self._clock.now_ns(), 0) / _NS if pending else None

    def _forward(self, direction: Direction, packets: list[bytes]) -> None:
        # Marked before, so that a call of `send_ready` meanwhile is not forgotten.
        with self._changed:
            self._blocked.add(direction)
        taken = super().send(packets) if direction is Direction.OUTBOUND else super().receive(packets)
        with self._changed:
            self._lines[direction].taken(taken)
            if taken == len(packets):
                self._blocked.discard(direction)

    def close(self) -> None:
        """Stop the thread; what is on the lines is lost."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()
        super().close()
