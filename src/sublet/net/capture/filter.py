"""Filters in the syntax that tcpdump and Wireshark's capture filters have, or a part of it.

    [src | dst] host ADDRESS     [src | dst] net CIDR     ether [src | dst] host MAC
    [tcp | udp] [src | dst] port NUMBER                   [tcp | udp] [src | dst] portrange A-B
    ip  ip6  arp  icmp  icmp6  tcp  udp  vlan [ID]  broadcast  multicast  less BYTES  greater BYTES
    not (!)   and (&&)   or (||)   ( )

``not`` binds closest. Unlike in tcpdump, ``and`` binds closer than ``or``, and what follows a VLAN tag is
looked at without saying ``vlan``.

Reference: pcap-filter(7).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Final

from sublet.errors import UsageError
from sublet.net.capture.frame import ETHERTYPES, PROTOCOLS, Address, Fields, read_fields

Predicate = Callable[[Fields], bool]

_TOKEN: Final = re.compile(r"\s*(&&|\|\||[()!]|[^\s()!&|]+)")
_MAX_TOKENS: Final = 200
_SYNONYMS: Final = {"&&": "and", "||": "or", "!": "not"}
_BROADCAST: Final = b"\xff" * 6


def compile_filter(text: str) -> Callable[[bytes], bool]:
    """A function that says whether a frame is wanted; an empty text wants all.

    Raises:
        UsageError: The text is no filter; the message says where.
    """
    if not text.strip():
        return lambda frame: True
    parser = _Parser(text)
    predicate = parser.whole()
    return lambda frame: predicate(read_fields(frame))


class _Parser:
    """Recursive descent over the words of a filter."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._words = [_SYNONYMS.get(word, word) for word in _TOKEN.findall(text)]
        self._position = 0
        if len("".join(_TOKEN.findall(text))) != len("".join(text.split())) or len(self._words) > _MAX_TOKENS:
            raise self._error("it has signs that no filter has, or is too long")

    def whole(self) -> Predicate:
        predicate = self._alternatives()
        if self._peek():
            raise self._error(f"{self._peek()!r} is not expected there")
        return predicate

    def _error(self, problem: str) -> UsageError:
        return UsageError(
            f"the filter {self._text!r}: {problem}",
            remedy='Write one such as "port 53", "host 10.0.0.1 and tcp" or "not arp".',
        )

    def _peek(self) -> str:
        return self._words[self._position] if self._position < len(self._words) else ""

    def _next(self, wanted: str = "something") -> str:
        word = self._peek()
        if not word:
            raise self._error(f"it ends where {wanted} should follow")
        self._position += 1
        return word

    def _accept(self, *words: str) -> str:
        """The next word if it is one of these; otherwise nothing, and it stays."""
        if self._peek() in words and self._peek():
            return self._next()
        return ""

    def _alternatives(self) -> Predicate:
        parts = [self._conjunction()]
        while self._accept("or"):
            parts.append(self._conjunction())
        return parts[0] if len(parts) == 1 else lambda fields: any(part(fields) for part in parts)

    def _conjunction(self) -> Predicate:
        parts = [self._negation()]
        while self._accept("and"):
            parts.append(self._negation())
        return parts[0] if len(parts) == 1 else lambda fields: all(part(fields) for part in parts)

    def _negation(self) -> Predicate:
        negate = False
        while self._accept("not"):
            negate = not negate
        inner = self._primitive()
        return (lambda fields: not inner(fields)) if negate else inner

    def _primitive(self) -> Predicate:
        if self._accept("("):
            inner = self._alternatives()
            if not self._accept(")"):
                raise self._error("a parenthesis is not closed")
            return inner
        if self._accept("ether"):
            return self._ether()
        word = self._peek()
        if word in ("tcp", "udp"):
            return self._transport()
        if word in ("src", "dst", "host", "net", "port", "portrange"):
            return self._qualified(self._next_direction())
        return self._plain(self._next("a condition"))

    def _plain(self, word: str) -> Predicate:
        if word in ETHERTYPES:
            return lambda fields: fields.ethertype == ETHERTYPES[word]
        if word in PROTOCOLS:
            return lambda fields: fields.protocol == PROTOCOLS[word]
        if word == "broadcast":
            return lambda fields: fields.ether_destination == _BROADCAST
        if word == "multicast":
            return lambda fields: bool(fields.ether_destination and fields.ether_destination[0] & 1)
        if word in ("less", "greater"):
            limit = self._number(word, 1 << 20)
            return lambda fields: fields.length <= limit if word == "less" else fields.length >= limit
        if word == "vlan":
            wanted = self._number("vlan", 0xFFF) if self._peek().isdigit() else None
            return lambda fields: fields.vlan >= 0 and wanted in (None, fields.vlan)
        raise self._error(f"{word!r} is no condition")

    def _transport(self) -> Predicate:
        protocol = PROTOCOLS[self._next()]
        if self._peek() not in ("src", "dst", "port", "portrange"):
            return lambda fields: fields.protocol == protocol
        ports = self._qualified(self._next_direction())
        return lambda fields: fields.protocol == protocol and ports(fields)

    def _next_direction(self) -> tuple[bool, bool]:
        """Whether the source and whether the destination counts."""
        word = self._accept("src", "dst")
        return word != "dst", word != "src"

    def _qualified(self, sides: tuple[bool, bool]) -> Predicate:
        word = self._next("host, net or port")
        if word == "host":
            address = self._address(self._next("an address"))
            return _either(sides, lambda fields: (fields.source == address, fields.destination == address))
        if word == "net":
            return self._network(sides)
        if word not in ("port", "portrange"):
            raise self._error(f"{word!r} is not host, net, port or portrange")
        low, high = self._range() if word == "portrange" else (self._number(word, 0xFFFF),) * 2
        return _either(
            sides,
            lambda fields: (low <= fields.source_port <= high, low <= fields.destination_port <= high),
        )

    def _network(self, sides: tuple[bool, bool]) -> Predicate:
        text = self._next("a network")
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise self._error(f"{text!r} is no network such as 10.0.0.0/8") from error
        return _either(
            sides, lambda fields: (_inside(fields.source, network), _inside(fields.destination, network))
        )

    def _ether(self) -> Predicate:
        sides = self._next_direction()
        if not self._accept("host"):
            raise self._error("after ether comes [src | dst] host")
        text = self._next("an Ethernet address")
        try:
            mac = bytes.fromhex(text.replace(":", "").replace("-", ""))
        except ValueError:
            mac = b""
        if len(mac) != 6:
            raise self._error(f"{text!r} is no Ethernet address")
        return _either(sides, lambda fields: (fields.ether_source == mac, fields.ether_destination == mac))

    def _address(self, text: str) -> Address:
        try:
            return ipaddress.ip_address(text)
        except ValueError as error:
            raise self._error(f"{text!r} is no address; names are not looked up") from error

    def _number(self, name: str, limit: int) -> int:
        text = self._next(f"the number of {name}")
        if not text.isascii() or not text.isdigit() or int(text) > limit:
            raise self._error(f"{name} {text!r} is not a number up to {limit}")
        return int(text)

    def _range(self) -> tuple[int, int]:
        text = self._next("a range of ports")
        low, dash, high = text.partition("-")
        if not dash or not low.isdigit() or not high.isdigit() or not int(low) <= int(high) <= 0xFFFF:
            raise self._error(f"{text!r} is no range of ports such as 6000-6008")
        return int(low), int(high)


def _either(sides: tuple[bool, bool], test: Callable[[Fields], tuple[bool, bool]]) -> Predicate:
    def predicate(fields: Fields) -> bool:
        source, destination = test(fields)
        return (sides[0] and source) or (sides[1] and destination)

    return predicate


def _inside(address: Address | None, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    return address is not None and address.version == network.version and address in network
