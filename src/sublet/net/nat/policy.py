"""What a guest may reach: ``allow=`` and ``deny=``, tried in order; the first that matches decides.

    [PROTOCOL/]TARGET[:PORT[-PORT]]     tcp, udp or icmp; *, an address, a CIDR, a name or *.NAME

IPv6 addresses stand in brackets. What no rule matches is allowed, so a list of what is allowed ends with
``deny=*``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from sublet.errors import UsageError
from sublet.net.options import NetOptions

PROTOCOLS: Final = ("tcp", "udp", "icmp")
_PORT_MAXIMUM: Final = 65535
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Row = tuple[bool, str | None, str, str, int, tuple[int, int] | None]
"""A rule as the core takes it: allow, protocol, kind of target, target, prefix length, ports."""


@dataclass(frozen=True)
class Rule:
    """One rule; ``target`` is a network, a name in lower case, or None for everything."""

    allow: bool
    protocol: str | None
    target: _Network | str | None
    ports: tuple[int, int] | None
    text: str

    def decides_all_of(self, other: Rule) -> bool:
        """Whether nothing that ``other`` matches gets past this rule."""
        same_protocol = self.protocol in (None, other.protocol)
        return same_protocol and self._has_ports_of(other) and self._has_targets_of(other)

    def _has_ports_of(self, other: Rule) -> bool:
        if self.ports is None:
            return True
        return other.ports is not None and self.ports[0] <= other.ports[0] and other.ports[1] <= self.ports[1]

    def _has_targets_of(self, other: Rule) -> bool:
        mine, theirs = self.target, other.target
        if mine is None:
            return True
        if isinstance(mine, str) and isinstance(theirs, str):
            return mine == theirs or (mine.startswith("*.") and theirs.endswith(mine[1:]))
        if isinstance(mine, ipaddress.IPv4Network) and isinstance(theirs, ipaddress.IPv4Network):
            return theirs.subnet_of(mine)
        if isinstance(mine, ipaddress.IPv6Network) and isinstance(theirs, ipaddress.IPv6Network):
            return theirs.subnet_of(mine)
        return False

    def row(self) -> Row:
        """For the core."""
        match self.target:
            case None:
                return (self.allow, self.protocol, "any", "", 0, self.ports)
            case str() as name:
                return (self.allow, self.protocol, "name", name, 0, self.ports)
            case network:
                address = str(network.network_address)
                return (self.allow, self.protocol, "network", address, network.prefixlen, self.ports)


def parse_policy(options: NetOptions) -> list[Rule]:
    """Every ``allow`` and ``deny``, in order.

    Raises:
        UsageError: One is malformed, can never apply, or the list contradicts itself.
    """
    rules = [_parse(options, name, value) for name, value in options.pairs if name in ("allow", "deny")]
    for index, rule in enumerate(rules):
        _check_reachable(options, rules[:index], rule)
    if rules and all(rule.allow for rule in rules):
        raise UsageError(
            f"--net {options.text}: allow= changes nothing, as everything is allowed",
            remedy="End the list with deny=* to allow nothing else.",
        )
    return rules


def _check_reachable(options: NetOptions, before: list[Rule], rule: Rule) -> None:
    for other in before:
        if other.decides_all_of(rule):
            raise UsageError(
                f"--net {options.text}: {rule.text} never applies, as {other.text} before it decides",
                remedy="Rules are tried in order: put the narrower one first, or leave one out.",
            )


def _parse(options: NetOptions, name: str, value: str) -> Rule:
    head, slash, rest = value.partition("/")
    protocol: str | None = None
    if slash and head in PROTOCOLS:
        protocol, body = head, rest
    else:
        body = value
    target, ports = _split_ports(options, name, body)
    if protocol == "icmp" and ports is not None:
        raise options.error(name, f"{value!r}: icmp has no ports")
    return Rule(name == "allow", protocol, _parse_target(options, name, target), ports, f"{name}={value}")


def _split_ports(options: NetOptions, name: str, body: str) -> tuple[str, tuple[int, int] | None]:
    """The target, and the ports after the last colon that is not in brackets."""
    closing = body.rfind("]")
    colon = body.rfind(":")
    if colon <= closing:
        return body, None
    if ":" in body[:colon] and closing < 0:
        raise options.error(name, f"{body!r}: write an IPv6 address in brackets")
    low, dash, high = body[colon + 1 :].partition("-")
    first = _parse_port(options, name, low)
    last = _parse_port(options, name, high) if dash else first
    if first > last:
        raise options.error(name, f"{body!r}: the first port is greater than the last")
    return body[:colon], (first, last)


def _parse_port(options: NetOptions, name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _PORT_MAXIMUM:
        raise options.error(name, f"has a port from 1 to {_PORT_MAXIMUM}, not {text!r}")
    return int(text)


def _parse_target(options: NetOptions, name: str, text: str) -> _Network | str | None:
    if text == "*":
        return None
    bare = text.removeprefix("[").removesuffix("]") if text.startswith("[") else text
    try:
        return ipaddress.ip_network(bare)
    except ValueError as error:
        if "host bits" in str(error):
            raise options.error(name, f"{text!r}: the address has bits past its prefix") from error
    pattern = text.lower().removesuffix(".")
    labels = pattern.removeprefix("*.").split(".")
    numeric = labels[-1].isdigit() or "/" in text or "[" in text
    if numeric or len(pattern) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise options.error(name, f"{text!r} is no address, network or name")
    return pattern
