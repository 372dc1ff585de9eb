"""Rules of ``--net nat``: what is read, and what is refused."""

from __future__ import annotations

import pytest

from sublet.errors import UsageError
from sublet.net.nat.policy import parse_policy
from sublet.net.options import parse_net


def rows(text: str) -> list[object]:
    return [rule.row() for rule in parse_policy(parse_net(f"nat,{text}"))]


def test_names_networks_protocols_and_ports() -> None:
    text = "allow=registry.Example:443,allow=tcp/10.0.0.0/8:5432-5440,allow=icmp/[2001:db8::/32],deny=*"
    assert rows(text) == [
        (True, None, "name", "registry.example", 0, (443, 443)),
        (True, "tcp", "network", "10.0.0.0", 8, (5432, 5440)),
        (True, "icmp", "network", "2001:db8::", 32, None),
        (False, None, "any", "", 0, None),
    ]


def test_an_address_is_a_network_of_one() -> None:
    assert rows("deny=192.0.2.1,deny=[::1]:80") == [
        (False, None, "network", "192.0.2.1", 32, None),
        (False, None, "network", "::1", 128, (80, 80)),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("allow=a.test:443", "everything is allowed"),
        ("deny=*,allow=a.test", "never applies"),
        ("allow=a.test,deny=a.test", "never applies"),
        ("deny=10.0.0.0/8,allow=10.1.0.0/16:80,deny=*", "never applies"),
        ("allow=*.test:1-100,deny=a.test:80", "never applies"),
        ("deny=10.0.0.1/8", "bits past its prefix"),
        ("deny=2001:db8::1:80", "in brackets"),
        ("deny=a.test:0", "a port from 1 to 65535"),
        ("deny=a.test:9-8", "greater than the last"),
        ("deny=icmp/1.2.3.4:7", "icmp has no ports"),
        ("deny=10.0.0", "no address, network or name"),
        ("deny=a..b", "no address, network or name"),
        ("deny=", "no address, network or name"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rows(text)


def test_narrower_rules_may_come_first() -> None:
    assert len(rows("deny=10.1.0.0/16,allow=10.0.0.0/8:80,allow=udp/*:53,deny=*")) == 4
