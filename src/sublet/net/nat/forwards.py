"""Ports of the host that lead into the network: ``forward=[PROTOCOL:][ADDRESS:]PORT-[MACHINE]:PORT``."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from sublet.errors import UsageError
from sublet.net.options import NetOptions

_FORM: Final = re.compile(
    r"(?:(?P<protocol>tcp|udp):)?"
    r"(?:(?P<address>[0-9.]+|\[[0-9a-fA-F:.]+\]|\*):)?(?P<port>[0-9]{1,5})"
    r"-(?P<machine>[0-9.]*|\[[0-9a-fA-F:.]+\]):(?P<machine_port>[0-9]{1,5})"
)
_EXAMPLES: Final = "Write forward=127.0.0.1:8080-:80, or forward=udp:5353-:53."
Row = tuple[str, str, str | None, int]


@dataclass(frozen=True)
class Forward:
    """One forwarded port. Without an address only this host may connect; ``*`` is everybody."""

    protocol: str
    listen: str
    """Address and port of the host, as in 127.0.0.1:80 or [::1]:80."""
    machine: str | None
    """None: the machine with the first lease."""
    port: int

    def row(self) -> Row:
        """For the core."""
        return (self.protocol, self.listen, self.machine, self.port)


def parse_forwards(options: NetOptions) -> list[Forward]:
    """Every ``forward``, in order.

    Raises:
        UsageError: One is malformed, or two have the same port.
    """
    forwards = [_parse(options, value) for value in options.all("forward")]
    seen: set[tuple[str, str]] = set()
    for forward in forwards:
        if (forward.protocol, forward.listen) in seen:
            raise options.error("forward", f"uses {forward.protocol} {forward.listen} twice")
        seen.add((forward.protocol, forward.listen))
    return forwards


def _parse(options: NetOptions, value: str) -> Forward:
    match = _FORM.fullmatch(value)
    if match is None:
        raise UsageError(f"--net {options.text}: forward={value} is not understood", remedy=_EXAMPLES)
    ports = [int(match["port"]), int(match["machine_port"])]
    if not all(1 <= port <= 65535 for port in ports):
        raise options.error("forward", f"{value!r}: ports are from 1 to 65535")
    try:
        listen = _listen(match["address"])
        machine = _strip(match["machine"]) or None
        if machine is not None:
            ipaddress.ip_address(machine)
    except ValueError as error:
        raise options.error("forward", f"{value!r}: {error}") from error
    where = f"[{listen}]:{ports[0]}" if ":" in listen else f"{listen}:{ports[0]}"
    return Forward(match["protocol"] or "tcp", where, machine, ports[1])


def _listen(text: str | None) -> str:
    if text is None:
        return "127.0.0.1"
    return "0.0.0.0" if text == "*" else str(ipaddress.ip_address(_strip(text)))


def _strip(text: str) -> str:
    return text.removeprefix("[").removesuffix("]")
