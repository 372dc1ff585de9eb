"""Options of ``--net nat``."""

from __future__ import annotations

from pathlib import Path

import pytest

from sublet.errors import UsageError
from sublet.net.nat.config import NatConfig, parse_nat
from sublet.net.options import parse_net


def parse(text: str) -> NatConfig:
    return parse_nat(parse_net(f"nat,{text}" if text else "nat"), mtu=1500)


def test_the_network_that_guests_know() -> None:
    core = parse("").for_core()
    assert (core["gateway"], core["dns"], core["first_lease"]) == ("10.0.2.2", "10.0.2.3", "10.0.2.15")
    assert core["host_access"] is False


def test_another_network_with_a_fixed_lease() -> None:
    config = parse("network=192.168.7.0/24,lease=52:54:00:00:00:07/192.168.7.7/DB,ipv6=off")
    core = config.for_core()
    assert (core["gateway"], core["v6"]) == ("192.168.7.2", None)
    assert core["reservations"] == [(b"\x52\x54\0\0\0\7", "192.168.7.7", "db")]


def test_resolvers_with_and_without_a_port() -> None:
    config = parse("resolver=192.0.2.1,resolver=192.0.2.2:5353,resolver=2001:db8::1,resolver=[::1]:54")
    assert config.resolvers == ("192.0.2.1:53", "192.0.2.2:5353", "[2001:db8::1]:53", "[::1]:54")


def test_forwards() -> None:
    config = parse(
        "forward=8080-:80,forward=udp:127.0.0.2:53-10.0.2.20:5353,forward=*:1-:2,forward=[::1]:3-:4"
    )
    assert [forward.row() for forward in config.forwards] == [
        ("tcp", "127.0.0.1:8080", None, 80),
        ("udp", "127.0.0.2:53", "10.0.2.20", 5353),
        ("tcp", "0.0.0.0:1", None, 2),
        ("tcp", "[::1]:3", None, 4),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network=10.0.2.1/24", "network"),
        ("network=10.0.0.0/30", "prefix"),
        ("network=127.0.0.0/8", "unicast"),
        ("forward=8080:80", "forward=8080:80"),
        ("forward=70000-:80", "1 to 65535"),
        ("forward=8080-192.0.2.1:80", "machines of 10.0.2.0/24"),
        ("forward=8080-:80,forward=127.0.0.1:8080-:81", "twice"),
        ("lease=52:54:00:00:00:07/10.0.2.2", "machines of 10.0.2.0/24"),
        ("lease=nonsense/10.0.2.20", "unicast address"),
        ("resolver=a.test", "resolver"),
        ("names=some", "allowed or all"),
        ("bootfile=x", "needs tftp"),
        ("tftp=/nonexistent", "folder"),
    ],
)
def test_wrong_options_are_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text)


def test_a_folder_for_network_boot(tmp_path: Path) -> None:
    assert parse(f"tftp={tmp_path},bootfile=pxelinux.0").boot == (str(tmp_path), "pxelinux.0")
