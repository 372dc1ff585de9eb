"""Who gets which address on a host-only network."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from sublet.net.tap.leases import LeaseFile
from sublet.testing import FakeClock

HOST = ipaddress.IPv4Interface("192.168.77.1/29")
"""With it, five addresses for machines."""


def mac(number: int) -> bytes:
    return b"\x52\x54\0\0\0" + bytes((number,))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def leases(tmp_path: Path, clock: FakeClock) -> LeaseFile:
    return LeaseFile(tmp_path / "leases", HOST, 60, clock.now_ns)


def test_each_machine_has_an_address_and_keeps_it(leases: LeaseFile) -> None:
    given = [leases.give(mac(number), None) for number in range(5)]
    assert set(given) == set(HOST.network.hosts()) - {HOST.ip}
    assert [leases.give(mac(number), None) for number in range(5)] == given
    assert leases.give(mac(9), None) is None
    assert len(leases.rows()) == 5


def test_a_wish_is_granted_where_it_can_be(leases: LeaseFile) -> None:
    wish = HOST.network.network_address + 4
    assert leases.give(mac(1), wish) == wish
    for other in (wish, HOST.ip, HOST.network.broadcast_address, ipaddress.IPv4Address("10.0.0.1")):
        assert leases.give(mac(2), other) not in (other, None)
        leases.release(mac(2))


def test_an_address_that_nobody_renews_is_free_again(leases: LeaseFile, clock: FakeClock) -> None:
    for number in range(5):
        leases.give(mac(number), None)
    clock.advance(59)
    leases.give(mac(0), None)
    clock.advance(2)
    assert [row["mac"] for row in leases.rows()] == [mac(0).hex(":")]
    assert leases.give(mac(9), None) is not None


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"network": 1}', b'{"network": "192.168.77.0/29", "leases": 7}']
)
def test_a_file_of_nonsense_is_forgotten(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "leases").write_bytes(text)
    leases = LeaseFile(tmp_path / "leases", HOST, 60, FakeClock().now_ns)
    assert leases.rows() == []
    assert leases.give(mac(1), None) is not None


def test_an_address_that_somebody_else_uses_is_given_to_nobody_for_a_while(
    leases: LeaseFile, clock: FakeClock
) -> None:
    """RFC 2131 §4.3.3."""
    first = leases.give(mac(1), None)
    assert first is not None
    leases.decline(mac(2), first)
    assert leases.give(mac(1), None) == first, "only who has it may decline it"
    leases.decline(mac(1), first)
    assert leases.rows() == []
    assert leases.give(mac(1), None) != first
    assert leases.give(mac(3), first) != first
    clock.advance(61)
    assert leases.give(mac(4), first) == first
