"""The value of ``--net``."""

from __future__ import annotations

import pytest

from sublet.errors import UsageError
from sublet.net.impairment import Impairment
from sublet.net.kinds import find_kind
from sublet.net.options import parse_net


def test_kind_value_and_options_in_order() -> None:
    options = parse_net("nat:x,forward=a,,b,allow=1,forward=c")
    assert options.kind == "nat"
    assert options.get("path") == "x"
    assert options.all("forward") == ["a,b", "c"]
    assert [name for name, _ in options.pairs] == ["path", "forward", "allow", "forward"]


@pytest.mark.parametrize("text", ["", ",mac=x", "nat,forward", "nat,=x", "a b"])
def test_what_is_not_of_the_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--net"):
        parse_net(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("none,mtu=67", "mtu is a number from 68"),
        ("none,mtu=1e3", "mtu is a number"),
        ("none,mtu=1500,mtu=1500", "mtu given more than once"),
        ("none,link=yes", "link is on or off"),
        ("none,mac=01:00:00:00:00:00", "mac is a unicast address"),
        ("none,mac=52:54:00:12:34", "mac is a unicast address"),
        ("none,loss=1", "loss is a percentage"),
        ("none,loss=101%", "loss is a percentage"),
        ("none,delay=20", "delay is a time"),
        ("none,delay=-1ms", "delay is a time"),
        ("none,delay=90s", "delay is a time"),
        ("none,rate=fast", "rate is bits a second"),
        ("none,rate=infG", "rate is bits a second"),
        ("none,jitter=1ms", "jitter cannot be more than the delay"),
        ("none,reorder=1%", "reorder needs a delay"),
    ],
)
def test_bad_values_are_named(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        read_everything(text)


def read_everything(text: str) -> None:
    options = parse_net(text)
    Impairment.from_options(options)
    options.integer("mtu", 1500, 68, 65521)
    options.flag("link")
    options.address("mac")


def test_values() -> None:
    options = parse_net("none,rate=1.5M,delay=20ms,loss=0.5%,mac=52:54:0:1:2:3,seed=7")
    assert options.address("mac") == bytes.fromhex("525400010203")
    assert Impairment.from_options(options) == Impairment(
        rate=1_500_000, delay_ns=20_000_000, loss=0.005, seed=7
    )
    assert Impairment.from_options(parse_net("none,seed=7")) is None


def test_unknown_kinds_and_options_say_what_there_is() -> None:
    with pytest.raises(UsageError, match="no kind of network 'brigded'") as raised:
        find_kind(parse_net("brigded"))
    assert "none" in raised.value.remedy
    with pytest.raises(UsageError, match="none has no option 'interfaec'"):
        find_kind(parse_net("none,interfaec=eth0"))
