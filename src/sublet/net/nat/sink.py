"""The card's side of a NAT network: packets to and from the engine in the core, in batches."""

from __future__ import annotations

import errno
import logging
import resource
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from sublet.core import HostError, NatEngine
from sublet.errors import HostRefused
from sublet.net.kinds import Nic
from sublet.net.nat.config import NatConfig, parse_nat
from sublet.net.options import NetOptions
from sublet.net.packet import Offload
from sublet.net.sink import PacketReceiver

_BATCH: Final = 64
"""Packets taken from the engine at once: up to 4 MiB."""
_DESCRIPTORS: Final = 16384
"""What thousands of flows need; the soft limit is often 1024."""
_DENIALS: Final = 100
_LOG: Final = logging.getLogger("sublet.net.nat")


class NatSink:
    """A network behind a router in user space.

    Args:
        config: The network.

    Raises:
        HostRefused: A forwarded port cannot be had.
    """

    def __init__(self, config: NatConfig) -> None:
        _raise_descriptor_limit()
        try:
            self._engine = NatEngine(config.for_core(), [forward.row() for forward in config.forwards])
        except HostError as error:
            raise HostRefused(error.message, remedy=_remedy(error.errno)) from error
        self._config = config
        self._receiver: PacketReceiver | None = None
        self._closing = False
        self._denials: deque[tuple[str, str, int]] = deque(maxlen=_DENIALS)
        self._thread: threading.Thread | None = None

    @property
    def offloads(self) -> Offload:
        """Segments of TCP are taken whole, and frames without their checksums."""
        return Offload.CHECKSUM | Offload.TSO4 | Offload.TSO6 | Offload.TSO_ECN

    def attach(self, receiver: PacketReceiver) -> None:
        """Start the thread that delivers."""
        self._receiver = receiver
        self._thread = threading.Thread(target=self._deliver, args=(receiver,), name="nat", daemon=True)
        self._thread.start()

    def set_guest_offloads(self, offloads: Offload) -> None:
        """Have the engine make long segments for a guest that takes them."""
        checksum = bool(offloads & Offload.CHECKSUM)
        self._engine.set_segmentation(
            checksum and bool(offloads & Offload.TSO4), checksum and bool(offloads & Offload.TSO6)
        )

    def send(self, packets: Sequence[bytes]) -> int:
        """Everything is taken: windows keep a TCP sender back, and other packets may be lost."""
        self._engine.send(packets)
        return len(packets)

    def receive_ready(self) -> None:
        """Go on delivering."""
        self._engine.has_room()

    def _deliver(self, receiver: PacketReceiver) -> None:
        """Serve the sockets, and hand the guest what comes of it, without another thread in between."""
        try:
            while packets := self._engine.take(_BATCH, None):
                self._offer(receiver, packets)
                self._log_denials()
        finally:
            if not self._closing:
                receiver.set_carrier(False)

    def _offer(self, receiver: PacketReceiver, packets: Sequence[bytes]) -> None:
        while packets and not self._engine.closed():
            taken = receiver.receive(packets)
            packets = packets[taken:]
            if packets:
                self._engine.wait_for_room()

    def _log_denials(self) -> None:
        for protocol, target, port in self._engine.take_denials():
            _LOG.info("denied: %s to %s port %d", protocol, target, port)
            self._denials.append((protocol, target, port))

    def statistics(self) -> dict[str, int]:
        """Drops by reason, refusals, traffic."""
        return self._engine.statistics()

    def inspect(self, what: str) -> list[dict[str, Any]]:
        """``leases``, ``flows`` or ``denials``, of which the last are kept."""
        if what == "leases":
            columns: tuple[str, ...] = ("mac", "address", "name", "seconds_left")
            rows: Sequence[tuple[object, ...]] = self._engine.leases()
        elif what == "flows":
            columns = ("protocol", "guest", "remote", "state", "bytes_out", "bytes_in")
            rows = self._engine.flows()
        elif what == "denials":
            columns, rows = ("protocol", "target", "port"), list(self._denials)
        else:
            return []
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def close(self) -> None:
        """Serve no connection any more and end the thread. Idempotent."""
        self._closing = True
        self._engine.close()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()


def open_nat(options: NetOptions, nic: Nic) -> NatSink:
    """Make a network of its own for a card.

    Raises:
        UsageError: An option is wrong.
        HostRefused: A forwarded port cannot be had.
    """
    return NatSink(parse_nat(options, nic.mtu))


def _raise_descriptor_limit() -> None:
    """Each flow of the guest has a socket of the host."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _remedy(number: int) -> str:
    match number:
        case errno.EADDRINUSE:
            return "Another program has the port: choose a different one."
        case errno.EACCES:
            return "Ports below 1024 need privilege: choose a greater one."
        case errno.EADDRNOTAVAIL:
            return "The address is not one of this host's."
        case _:
            return ""
