"""A machine's port on a host-only network, which answers the machine's DHCP itself.

No server process is needed, no port of the host, and nothing on the network can pose as the server: a
machine's DHCP messages end here. What its machines share is only the file of leases.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from sublet.net.tap import dhcp
from sublet.net.tap.device import TapSink
from sublet.net.tap.dhcp import Kind, Message, Server
from sublet.net.tap.leases import LeaseFile

_LOG: Final = logging.getLogger("sublet.net")
_MAX_ANSWERS: Final = 16
"""Answers that wait for the guest to have room; more are dropped, and it asks again."""


class HostOnlySink(TapSink):
    """A TAP device on a host-only bridge, and a DHCP server for who is behind it.

    Args:
        descriptors: As of `TapSink`.
        mac: As of `TapSink`.
        server: The host, as DHCP tells of it.
        leases: Of the network.
        on_release: As of `TapSink`.
    """

    def __init__(
        self,
        descriptors: Sequence[int],
        mac: bytes | None,
        server: Server,
        leases: LeaseFile,
        on_release: Callable[[], None] | None = None,
    ) -> None:
        self._server, self._leases = server, leases
        self._answers: deque[bytes] = deque(maxlen=_MAX_ANSWERS)
        super().__init__(descriptors, mac, on_release)

    def write_packets(self, packets: Sequence[bytes]) -> int:
        """As `TapSink`, but for what asks a DHCP server."""
        if not any(map(dhcp.is_for_server, packets)):
            return super().write_packets(packets)
        for index, packet in enumerate(packets):
            if dhcp.is_for_server(packet):
                self._take(packet)
            elif not super().write_packets((packet,)):
                return index
        return len(packets)

    def _take(self, packet: bytes) -> None:
        message = dhcp.parse(packet)
        if message is None or (self._mac is not None and message.mac != self._mac):
            self.counters["dropped.dhcp"] += 1
            return
        try:
            answer = self._answer_to(message)
        except OSError as error:
            _LOG.info("no address for %s: the leases cannot be kept: %s", message.mac.hex(":"), error)
            self.counters["dropped.dhcp"] += 1
            return
        if answer is not None:
            self._answers.append(answer)
            self.wake_to_read()

    def _answer_to(self, message: Message) -> bytes | None:
        """RFC 2131 §4.3 "DHCP server behavior"."""
        ours = message.server in (None, self._server.interface.ip)
        if message.kind is Kind.INFORM:
            return self._server.answer(message, Kind.ACK, None)
        if message.kind is Kind.DISCOVER or (message.kind is Kind.REQUEST and ours):
            return self._give(message)
        if message.kind is Kind.RELEASE and ours:
            self._leases.release(message.mac)
        if message.kind is Kind.DECLINE and ours and message.requested is not None:
            self._leases.decline(message.mac, message.requested)
        return None

    def _give(self, message: Message) -> bytes | None:
        wanted = message.requested or (message.client if int(message.client) else None)
        address = self._leases.give(message.mac, wanted)
        if message.kind is Kind.DISCOVER:
            return self._server.answer(message, Kind.OFFER, address) if address is not None else None
        if address is None or address != wanted:
            return self._server.answer(message, Kind.NAK, None)
        return self._server.answer(message, Kind.ACK, address)

    def read_packets(self) -> list[bytes]:
        """Answers first."""
        answers = [self._answers.popleft() for _ in range(len(self._answers))]
        return answers or super().read_packets()

    def inspect(self, what: str) -> list[dict[str, Any]]:
        """``leases`` of the whole network."""
        return self._leases.rows() if what == "leases" else []
