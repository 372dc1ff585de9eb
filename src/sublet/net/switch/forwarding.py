"""Where packets go: the switch without its sockets.

| packet                                             | where it goes                                   |
|----------------------------------------------------|-------------------------------------------------|
| from another address than the port's own           | nowhere, unless the port may spoof              |
| to a port's address, or one learned from it        | there                                           |
| to itself                                          | nowhere                                         |
| to all, to a group, or to an address not known     | everywhere else, within the port's flood rate   |
| to a bridge group address (01-80-C2-00-00-0X)      | nowhere                                         |
| between two isolated ports                         | nowhere                                         |
| any that goes somewhere                            | to the mirror ports too                         |

Reference: IEEE 802.1Q-2022 §8.6 "The Forwarding Process", §8.8 "The Filtering Database".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from sublet.hw import Clock
from sublet.net.packet import HEADER_SIZE, Offload
from sublet.net.switch.protocol import Join

AGEING_NS: Final = 300 * 10**9
"""802.1Q's recommended value."""
MAX_LEARNED: Final = 256
"""Addresses a port; a port that uses more forgets its oldest."""
FLOOD_RATE: Final = 5000
"""Packets a second that a port may send to all."""
FLOOD_BURST: Final = 5000
MAX_PORTS: Final = 128
_RESERVED: Final = bytes.fromhex("0180c20000")
_NS: Final = 10**9


@dataclass(eq=False)
class Port:
    """One machine's end."""

    join: Join
    address: bytes
    offloads: Offload = Offload.NONE
    counters: Counter[str] = field(default_factory=Counter)
    learned: dict[bytes, int] = field(default_factory=dict)
    """When each address was last seen, oldest first; only of a port that may spoof."""
    tokens: float = FLOOD_BURST
    refilled_ns: int = 0


Batches = dict[Port, list[memoryview]]


class JoinRefused(Exception):
    """Why a machine cannot join, in a sentence for its user."""


class Forwarding:
    """The ports of one network and the addresses behind them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ports: list[Port] = []
        self._mirrors: list[Port] = []
        self._addresses: dict[bytes, Port] = {}

    @property
    def ports(self) -> list[Port]:
        """Those that have joined."""
        return [*self._ports, *self._mirrors]

    def join(self, join: Join) -> Port:
        """Add a port.

        Raises:
            JoinRefused: The network is full, or the address is another machine's.
        """
        port = Port(join, bytes.fromhex(join.mac), refilled_ns=self._clock.now_ns())
        if len(self.ports) >= MAX_PORTS:
            raise JoinRefused(f"it has {MAX_PORTS} machines already")
        if join.mirror:
            self._mirrors.append(port)
            return port
        other = self._addresses.get(port.address)
        if other is not None and other.address == port.address:
            raise JoinRefused(f"the machine {other.join.machine} has the address {port.address.hex(':')}")
        self._addresses[port.address] = port
        self._ports.append(port)
        return port

    def leave(self, port: Port) -> None:
        """Remove a port and all its addresses. Idempotent."""
        for ports in (self._ports, self._mirrors):
            if port in ports:
                ports.remove(port)
        self._addresses = {address: owner for address, owner in self._addresses.items() if owner is not port}

    def forward(self, source: Port, packets: Iterable[memoryview]) -> Batches:
        """Where each of a port's packets goes, in order."""
        batches: Batches = defaultdict(list)
        for packet in packets:
            if source.join.mirror or packet[0] & 0xF8:
                source.counters["dropped.not_allowed"] += 1
                continue
            destination = bytes(packet[HEADER_SIZE : HEADER_SIZE + 6])
            if not self._learn(source, bytes(packet[HEADER_SIZE + 6 : HEADER_SIZE + 12])):
                source.counters["dropped.spoofed"] += 1
                continue
            targets = self._targets(source, destination)
            for target in targets:
                batches[target].append(packet)
            if targets:
                for mirror in self._mirrors:
                    batches[mirror].append(packet)
        return batches

    def _learn(self, source: Port, address: bytes) -> bool:
        """Whether the port may send from ``address``; remembers it if so."""
        if address == source.address:
            return True
        if not source.join.spoof or address[0] & 1:
            return False
        owner = self._addresses.get(address)
        if owner is not None and owner.address == address:
            return False  # another machine's own
        if owner is not None and owner is not source:
            owner.learned.pop(address, None)
        source.learned.pop(address, None)
        source.learned[address] = self._clock.now_ns()
        self._addresses[address] = source
        if len(source.learned) > MAX_LEARNED:
            self._forget(source, next(iter(source.learned)))
        return True

    def _forget(self, port: Port, address: bytes) -> None:
        port.learned.pop(address, None)
        if self._addresses.get(address) is port:
            del self._addresses[address]

    def _targets(self, source: Port, destination: bytes) -> list[Port]:
        owner = self._owner(destination)
        if owner is not None:
            found = [owner] if owner is not source else []
        elif destination[:5] == _RESERVED and destination[5] < 0x10:
            found = []
        elif self._may_flood(source):
            found = [port for port in self._ports if port is not source]
        else:
            source.counters["dropped.flood"] += 1
            return []
        if source.join.isolated:
            found = [port for port in found if not port.join.isolated]
        return found

    def _owner(self, destination: bytes) -> Port | None:
        owner = self._addresses.get(destination)
        if owner is None or owner.address == destination:
            return owner
        if self._clock.now_ns() - owner.learned[destination] > AGEING_NS:
            self._forget(owner, destination)
            return None
        return owner

    def _may_flood(self, source: Port) -> bool:
        now = self._clock.now_ns()
        refill = (now - source.refilled_ns) * FLOOD_RATE / _NS
        source.tokens, source.refilled_ns = min(source.tokens + refill, FLOOD_BURST), now
        if source.tokens < 1:
            return False
        source.tokens -= 1
        return True
