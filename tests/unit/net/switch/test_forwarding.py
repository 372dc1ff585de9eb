"""Where a switch sends packets (IEEE 802.1Q-2022 §8.6, §8.8)."""

from __future__ import annotations

import pytest

from sublet.net import HEADER_SIZE
from sublet.net.switch.forwarding import AGEING_NS, FLOOD_BURST, MAX_LEARNED, Forwarding, JoinRefused, Port
from sublet.net.switch.protocol import Join
from sublet.testing import FakeClock

BROADCAST = b"\xff" * 6


def mac(number: int) -> bytes:
    return b"\x52\x54\0\0" + number.to_bytes(2, "big")


class Network:
    """Ports numbered from 1, with the address of their number."""

    def __init__(self, *flags: dict[str, bool]) -> None:
        self.clock = FakeClock()
        self.forwarding = Forwarding(self.clock)
        self.ports = [
            self.forwarding.join(Join(f"m{number}", mac(number).hex(), **each))
            for number, each in enumerate(flags, 1)
        ]

    def send(self, source: int, destination: bytes, address: bytes | None = None) -> list[int]:
        """Ports that a packet from a port reaches."""
        frame = destination + (address or mac(source)) + b"\x08\0" + bytes(46)
        packet = memoryview(bytes(HEADER_SIZE) + frame)
        reached: dict[Port, list[memoryview]] = self.forwarding.forward(self.ports[source - 1], [packet])
        return sorted(self.ports.index(port) + 1 for port in reached)


def test_broadcast_reaches_all_others_and_unicast_one() -> None:
    network = Network({}, {}, {})
    assert network.send(1, BROADCAST) == [2, 3]
    assert network.send(1, mac(3)) == [3]
    assert network.send(1, mac(1)) == []


def test_unknown_addresses_are_flooded_and_bridge_group_addresses_are_not() -> None:
    network = Network({}, {}, {})
    assert network.send(1, mac(9)) == [2, 3]
    assert network.send(1, bytes.fromhex("0180c200000e")) == []


def test_another_source_address_is_refused_and_counted() -> None:
    network = Network({}, {})
    assert network.send(1, mac(2), address=mac(7)) == []
    assert network.ports[0].counters == {"dropped.spoofed": 1}


def test_a_port_that_may_spoof_is_learned_and_forgotten() -> None:
    network = Network({"spoof": True}, {}, {})
    assert network.send(1, mac(2), address=mac(7)) == [2]
    assert network.send(2, mac(7)) == [1]
    network.clock.advance(AGEING_NS / 1e9 + 1)
    assert network.send(2, mac(7)) == [1, 3]


def test_nobody_takes_over_another_machines_address() -> None:
    network = Network({"spoof": True}, {}, {})
    assert network.send(1, mac(3), address=mac(2)) == []
    assert network.send(3, mac(2)) == [2]


def test_learned_addresses_are_bounded() -> None:
    network = Network({"spoof": True}, {}, {})
    for number in range(1000):
        network.send(1, mac(2), address=mac(1000 + number))
    assert len(network.ports[0].learned) == MAX_LEARNED
    assert network.send(2, mac(1000)) == [1, 3], "the oldest is flooded again"
    assert network.send(2, mac(1999)) == [1]


def test_isolated_ports_see_the_others_only() -> None:
    network = Network({"isolated": True}, {"isolated": True}, {})
    assert network.send(1, BROADCAST) == [3]
    assert network.send(1, mac(2)) == []
    assert network.send(3, BROADCAST) == [1, 2]


def test_a_mirror_sees_everything_and_says_nothing() -> None:
    network = Network({}, {}, {"mirror": True})
    assert network.send(1, mac(2)) == [2, 3]
    assert network.send(3, mac(2)) == []
    assert network.ports[2].counters == {"dropped.not_allowed": 1}


def test_floods_are_bounded_and_unicast_is_not() -> None:
    network = Network({}, {})
    reached = [network.send(1, BROADCAST) for _ in range(FLOOD_BURST + 10)]
    assert reached.count([2]) == FLOOD_BURST
    assert network.send(1, mac(2)) == [2]
    network.clock.advance(1)
    assert network.send(1, BROADCAST) == [2]


def test_one_address_cannot_join_twice_until_its_machine_left() -> None:
    network = Network({})
    with pytest.raises(JoinRefused, match="m1 has the address 52:54:00:00:00:01"):
        network.forwarding.join(Join("twin", mac(1).hex()))
    network.forwarding.leave(network.ports[0])
    network.forwarding.join(Join("twin", mac(1).hex()))
