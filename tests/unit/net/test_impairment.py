"""Bad lines against a clock that stands still."""

from __future__ import annotations

import itertools
import time

import pytest

from sublet.hw import Clock
from sublet.net import from_frame
from sublet.net.cable import Direction
from sublet.net.impairment import ImpairedCable, Impairment, Line
from sublet.net.sink import NullSink
from sublet.testing import FakeCard, FakeClock, FakeSink

MS = 1_000_000
FRAME = from_frame(bytes(125))


def run(impairment: Impairment, count: int = 1000) -> list[tuple[int, int]]:
    """Put a packet a millisecond onto a line; (packet, when it arrived in ms) in order of arrival."""
    line, arrived = Line(impairment, Direction.OUTBOUND), []
    for now in range(count + 200):
        if now < count:
            line.put(from_frame(now.to_bytes(20, "big")), now * MS)
        packets = line.arrived(now * MS)
        line.taken(len(packets))
        arrived += [(int.from_bytes(packet[12:], "big"), now) for packet in packets]
    return arrived


def test_delay() -> None:
    assert run(Impairment(delay_ns=20 * MS), 10) == [(i, i + 20) for i in range(10)]


def test_jitter_stays_in_its_bounds() -> None:
    delays = [when - number for number, when in run(Impairment(delay_ns=20 * MS, jitter_ns=5 * MS))]
    assert min(delays) >= 15
    assert 24 <= max(delays) <= 25


def test_loss_and_duplicates_are_about_as_often_as_asked() -> None:
    assert 850 < len(run(Impairment(loss=0.1))) < 950
    assert 1050 < len(run(Impairment(duplicate=0.1))) < 1150


def test_some_packets_overtake() -> None:
    numbers = [number for number, _ in run(Impairment(delay_ns=10 * MS, reorder=0.1))]
    assert sorted(numbers) == list(range(1000))
    assert 50 < sum(a > b for a, b in itertools.pairwise(numbers)) < 150


def test_the_rate_spaces_packets() -> None:
    line = Line(Impairment(rate=1_000_000), Direction.INBOUND)
    for _ in range(3):
        assert line.put(FRAME, 0) is None
    assert [line.arrived(ms * MS) for ms in (0, 1)] == [[], [FRAME]]
    line.taken(1)
    assert line.next_ns == 2 * MS


def test_a_full_line_drops() -> None:
    line = Line(Impairment(delay_ns=MS, limit=2), Direction.INBOUND)
    assert [line.put(FRAME, 0) for _ in range(3)] == [None, None, "line_full"]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_does_the_same(seed: int) -> None:
    impairment = Impairment(delay_ns=20 * MS, jitter_ns=9 * MS, loss=0.05, duplicate=0.05, seed=seed)
    assert run(impairment) == run(impairment)
    assert run(impairment) != run(Impairment(20, 20 * MS, 9 * MS, 0.05, 0, 0.05, seed=seed + 1))


class RealClock:
    """Time that passes by itself."""

    def now_ns(self) -> int:
        return time.monotonic_ns()


def test_the_cable_forwards_and_waits_for_room() -> None:
    clock: Clock = RealClock()
    sink = FakeSink()
    cable = ImpairedCable(sink, Impairment(delay_ns=MS), clock)
    card = FakeCard(cable)
    card.room = 1
    sink.deliver(b"a" * 20, b"b" * 20)
    assert card.frame() == b"a" * 20
    card.room = 5
    cable.receive_ready()
    assert card.frame() == b"b" * 20
    cable.close()
    assert sink.closed


def test_losses_are_counted() -> None:
    cable = ImpairedCable(NullSink(), Impairment(loss=1.0), FakeClock())
    assert FakeCard(cable).send(bytes(20), bytes(20)) == 2
    assert cable.statistics() == {"dropped.loss": 2}
    cable.close()
