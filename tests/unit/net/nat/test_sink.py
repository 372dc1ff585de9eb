"""The sink between a card and the router in the core."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sublet.errors import HostRefused
from sublet.net.nat.config import parse_nat
from sublet.net.nat.sink import NatSink
from sublet.net.options import parse_net
from sublet.net.packet import NO_OFFLOAD

MAC = bytes.fromhex("525400000001")
_ASK = b"\xff" * 6 + MAC + b"\x08\x06" + b"\0\1\x08\0\6\4\0\1" + MAC + bytes([10, 0, 2, 15]) + bytes(6)
ASK_FOR_GATEWAY = NO_OFFLOAD + _ASK + bytes([10, 0, 2, 2])


class Card:
    """Takes packets while it has room."""

    def __init__(self) -> None:
        self.packets: queue.Queue[bytes] = queue.Queue()
        self.room = True
        self.refused = threading.Event()

    def receive(self, packets: Sequence[bytes]) -> int:
        if not self.room:
            self.refused.set()
            return 0
        for packet in packets:
            self.packets.put(packet)
        return len(packets)

    def send_ready(self) -> None:
        """The sink takes everything at once."""

    def set_carrier(self, up: bool) -> None:
        """The cable is never pulled."""


def open_sink(options: str = "nat") -> NatSink:
    return NatSink(parse_nat(parse_net(options), mtu=1500))


@pytest.fixture
def sink() -> Iterator[NatSink]:
    opened = open_sink()
    yield opened
    opened.close()


def test_an_answer_comes_to_the_card(sink: NatSink) -> None:
    card = Card()
    sink.attach(card)
    assert sink.send([ASK_FOR_GATEWAY]) == 1
    answer = card.packets.get(timeout=20)
    assert answer[12:18] == MAC
    assert sink.statistics()["packets.to_guest"] == 1


def test_what_the_card_has_no_room_for_comes_later(sink: NatSink) -> None:
    card = Card()
    card.room = False
    sink.attach(card)
    sink.send([ASK_FOR_GATEWAY])
    assert card.refused.wait(20)
    card.room = True
    sink.receive_ready()
    assert card.packets.get(timeout=20)[12:18] == MAC


def test_garbage_is_counted(sink: NatSink) -> None:
    assert sink.send([NO_OFFLOAD + bytes(20), b"", bytes(70_000)]) == 3
    statistics = sink.statistics()
    assert sum(count for name, count in statistics.items() if name.startswith("dropped.")) == 3


def test_a_taken_port_is_told_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HostRefused, match=f"127.0.0.1:{port}") as refused:
            open_sink(f"nat,forward={port}-:80")
    assert "different" in refused.value.remedy


def test_an_address_of_another_host_is_told_with_a_remedy() -> None:
    with pytest.raises(HostRefused) as refused:
        open_sink("nat,forward=192.0.2.1:8080-:80")
    assert "this host" in refused.value.remedy


def test_rows_for_people(sink: NatSink) -> None:
    assert sink.inspect("leases") == sink.inspect("flows") == sink.inspect("denials") == []
    assert sink.inspect("weather") == []


def nat_thread_switches() -> list[int]:
    """How often each thread of a router went to sleep, so far."""
    counts = []
    for thread in threading.enumerate():
        if thread.name == "nat":
            status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
            counts.append(int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0]))
    return counts


def test_an_idle_network_wakes_nobody(sink: NatSink) -> None:
    card = Card()
    sink.attach(card)
    sink.send([ASK_FOR_GATEWAY])
    card.packets.get(timeout=20)
    time.sleep(0.2)
    before = nat_thread_switches()
    time.sleep(1)
    assert before
    assert nat_thread_switches() == before


def test_closing_ends_the_threads() -> None:
    sink = open_sink()
    sink.attach(Card())
    sink.close()
    sink.close()
    assert nat_thread_switches() == []
