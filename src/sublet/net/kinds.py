"""Every kind of network that ``--net`` can name.

A kind is added here and nowhere else: its options, and a function that opens it. What only some kinds
need is imported where it is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sublet.errors import UsageError
from sublet.hw import Clock
from sublet.net.cable import Cable
from sublet.net.options import NetOptions
from sublet.net.sink import NullSink, PacketSink

CARD_OPTIONS: Final = frozenset({"model", "mac", "mtu", "queues", "link"})
"""Options of the card itself, which every kind of network has."""
IMPAIRMENT_OPTIONS: Final = frozenset(
    {"rate", "delay", "jitter", "loss", "reorder", "duplicate", "limit", "seed"}
)
"""Options of the cable, which every kind of network has."""


@dataclass(frozen=True)
class Nic:
    """What a network is told of the card that is plugged into it."""

    machine: str
    """Name of the machine."""
    name: str
    """``net0``, ``net1``, ..."""
    mac: bytes
    mtu: int
    queues: int
    clock: Clock
    directory: Callable[[], Path]
    """Where sockets of this user's machines are (`HostRefused` when there is no such place)."""


@dataclass(frozen=True)
class Kind:
    """One kind of network."""

    summary: str
    options: frozenset[str]
    open: Callable[[NetOptions, Nic], PacketSink]


def open_network(options: NetOptions, nic: Nic) -> Cable:
    """Connect to a network.

    Raises:
        UsageError: There is no such kind, or an option is wrong.
        HostRefused: The host does not allow it, or has not what it needs.
    """
    from sublet.net.impairment import ImpairedCable, Impairment

    kind = find_kind(options)
    impairment = Impairment.from_options(options)
    sink = kind.open(options, nic)
    return Cable(sink) if impairment is None else ImpairedCable(sink, impairment, nic.clock)


def find_kind(options: NetOptions) -> Kind:
    """The kind that the options name, which has them all.

    Raises:
        UsageError: There is no such kind, or it has not such an option.
    """
    kind = KINDS.get(options.kind)
    if kind is None:
        raise UsageError(
            f"--net {options.text}: there is no kind of network {options.kind!r}",
            remedy=f"There are {', '.join(sorted(KINDS))}.",
        )
    options.check_names(kind.options | CARD_OPTIONS | IMPAIRMENT_OPTIONS)
    return kind


def _open_none(options: NetOptions, nic: Nic) -> PacketSink:
    return NullSink()


def _open_unix(options: NetOptions, nic: Nic) -> PacketSink:
    from sublet.net.sockets import open_unix

    return open_unix(options, nic)


def _open_stream(options: NetOptions, nic: Nic) -> PacketSink:
    from sublet.net.sockets import open_stream

    return open_stream(options, nic)


def _open_dgram(options: NetOptions, nic: Nic) -> PacketSink:
    from sublet.net.sockets import open_dgram

    return open_dgram(options, nic)


def _open_passt(options: NetOptions, nic: Nic) -> PacketSink:
    from sublet.net.sockets import open_passt

    return open_passt(options, nic)


def _open_internal(options: NetOptions, nic: Nic) -> PacketSink:
    from sublet.net.switch import open_internal

    return open_internal(options, nic)


def _open_nat(options: NetOptions, nic: Nic) -> PacketSink:
    from sublet.net.nat.sink import open_nat

    return open_nat(options, nic)


_NAT_OPTIONS: Final = frozenset(
    {
        "allow",
        "bootfile",
        "deny",
        "domain",
        "forward",
        "host",
        "ipv6",
        "lease",
        "names",
        "network",
        "resolver",
        "tftp",
    }
)


def _open_tap(options: NetOptions, nic: Nic) -> PacketSink:
    from sublet.net.tap import open_tap

    return open_tap(options, nic)


def _open_bridged(options: NetOptions, nic: Nic) -> PacketSink:
    from sublet.net.tap import open_bridged

    return open_bridged(options, nic)


def _open_hostonly(options: NetOptions, nic: Nic) -> PacketSink:
    from sublet.net.tap import open_hostonly

    return open_hostonly(options, nic)


KINDS: Final[dict[str, Kind]] = {
    "bridged": Kind(
        "a neighbour on the network of a host's interface", frozenset({"interface", "spoof"}), _open_bridged
    ),
    "hostonly": Kind(
        "the host and your machines, nobody else",
        frozenset({"name", "address", "dhcp", "spoof"}),
        _open_hostonly,
    ),
    "tap": Kind("a TAP device that an administrator made", frozenset({"interface", "spoof"}), _open_tap),
    "internal": Kind(
        "a switch of your machines alone",
        frozenset({"name", "spoof", "isolated", "mirror"}),
        _open_internal,
    ),
    "nat": Kind("the host's network, through a router in this process", _NAT_OPTIONS, _open_nat),
    "none": Kind("a cable to nowhere", frozenset(), _open_none),
    "stream": Kind(
        "a program at a stream socket, as QEMU's -netdev stream", frozenset({"path", "address"}), _open_stream
    ),
    "dgram": Kind(
        "a program at a UDP port, as QEMU's -netdev dgram", frozenset({"local", "remote"}), _open_dgram
    ),
    "passt": Kind("NAT by the program passt", frozenset(), _open_passt),
    "unix": Kind("a program that listens on a socket", frozenset({"path"}), _open_unix),
}
