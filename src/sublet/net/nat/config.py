"""The options of ``--net nat`` as the core takes them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sublet.net.nat.forwards import Forward, parse_forwards
from sublet.net.nat.policy import Rule, parse_policy
from sublet.net.options import NetOptions

DEFAULT_NETWORK: Final = "10.0.2.0/24"
"""What guests of other virtual machines know: .2 is the router, .3 the resolver, .15 the first lease."""
DEFAULT_DOMAIN: Final = "sublet.internal"
PREFIX_V6: Final = ipaddress.IPv6Network("fd73:626c:6574::/64")
"""A unique local prefix (RFC 4193); every network has the same, as none is ever joined to another."""
_ROUTER, _RESOLVER, _FIRST_LEASE = 2, 3, 15
_SMALLEST: Final = 27
_DNS_PORT: Final = 53


@dataclass(frozen=True)
class NatConfig:
    """One network behind a router."""

    network: ipaddress.IPv4Network
    mtu: int
    ipv6: bool = True
    host: bool = False
    """Whether the gateway's address leads to services of the host."""
    open_names: bool = False
    domain: str = DEFAULT_DOMAIN
    resolvers: tuple[str, ...] = ()
    leases: tuple[tuple[bytes, str, str], ...] = ()
    rules: tuple[Rule, ...] = ()
    forwards: tuple[Forward, ...] = field(default=())
    boot: tuple[str, str] | None = None
    """Folder of the TFTP server, and the file that DHCP tells of."""

    def for_core(self) -> dict[str, object]:
        """The argument of ``NatEngine``."""
        base = self.network.network_address
        v6 = PREFIX_V6.network_address
        return {
            "gateway": str(base + _ROUTER),
            "prefix_length": self.network.prefixlen,
            "dns": str(base + _RESOLVER),
            "first_lease": str(base + _FIRST_LEASE),
            "v6": (str(v6), str(v6 + _ROUTER), str(v6 + _RESOLVER)) if self.ipv6 else None,
            "mtu": self.mtu,
            "host_access": self.host,
            "resolvers": list(self.resolvers),
            "domain": self.domain,
            "reservations": list(self.leases),
            "rules": [rule.row() for rule in self.rules],
            "open_names": self.open_names,
            "boot": self.boot,
        }


def parse_nat(options: NetOptions, mtu: int) -> NatConfig:
    """Read the options.

    Raises:
        UsageError: One is wrong.
    """
    network = _network(options)
    return NatConfig(
        network=network,
        mtu=mtu,
        ipv6=options.flag("ipv6", default=True),
        host=options.flag("host"),
        open_names=_choice(options, "names", ("allowed", "all")) == "all",
        domain=options.get("domain") or DEFAULT_DOMAIN,
        resolvers=tuple(_resolver(options, text) for text in options.all("resolver")),
        leases=tuple(_lease(options, network, text) for text in options.all("lease")),
        rules=tuple(parse_policy(options)),
        forwards=tuple(_forward(options, network, each) for each in parse_forwards(options)),
        boot=_boot(options),
    )


def _network(options: NetOptions) -> ipaddress.IPv4Network:
    text = options.get("network") or DEFAULT_NETWORK
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise options.error("network", f"is an IPv4 network such as {DEFAULT_NETWORK}: {error}") from error
    if not 8 <= network.prefixlen <= _SMALLEST or network.is_loopback or network.is_multicast:
        raise options.error("network", f"has a prefix of 8 to {_SMALLEST} bits and unicast addresses")
    return network


def _choice(options: NetOptions, name: str, values: tuple[str, ...]) -> str:
    value = options.get(name) or values[0]
    if value not in values:
        raise options.error(name, f"is {' or '.join(values)}, not {value!r}")
    return value


def _resolver(options: NetOptions, text: str) -> str:
    """ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT."""
    host, colon, port = text.rpartition(":")
    bracketed = text.startswith("[")
    if not colon or (":" in host and not bracketed):
        host, port = text, str(_DNS_PORT)
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port)
    except ValueError as error:
        raise options.error("resolver", f"is an address, with a port or without, not {text!r}") from error
    if not 1 <= number <= 65535:
        raise options.error("resolver", f"has a port from 1 to 65535, not {port}")
    return f"[{address}]:{number}" if address.version == 6 else f"{address}:{number}"


def _lease(options: NetOptions, network: ipaddress.IPv4Network, text: str) -> tuple[bytes, str, str]:
    """MAC/ADDRESS[/NAME]."""
    mac, _, rest = text.partition("/")
    address, _, name = rest.partition("/")
    octets = NetOptions("nat", (("lease", mac),), options.text).address("lease")
    return octets or b"", _machine(options, "lease", network, address), name.lower()


def _machine(options: NetOptions, name: str, network: ipaddress.IPv4Network, text: str) -> str:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError as error:
        raise options.error(name, f"has an IPv4 address, not {text!r}") from error
    taken = [network.network_address + offset for offset in (0, _ROUTER, _RESOLVER)]
    if address not in network or address in (*taken, network.broadcast_address):
        raise options.error(name, f"has an address that machines of {network} can have, not {address}")
    return str(address)


def _forward(options: NetOptions, network: ipaddress.IPv4Network, forward: Forward) -> Forward:
    if forward.machine is not None and ":" not in forward.machine:
        _machine(options, "forward", network, forward.machine)
    return forward


def _boot(options: NetOptions) -> tuple[str, str] | None:
    root, file = options.get("tftp"), options.get("bootfile")
    if root is None:
        if file is not None:
            raise options.error("bootfile", "needs tftp=FOLDER")
        return None
    folder = Path(root).expanduser().resolve()
    if not folder.is_dir():
        raise options.error("tftp", f"is a folder, and {folder} is none")
    return str(folder), file or ""


def describe(config: NatConfig) -> dict[str, Any]:
    """What ``sublet net ls`` shows of the network."""
    values = config.for_core()
    return {key: values[key] for key in ("gateway", "dns", "domain")}
