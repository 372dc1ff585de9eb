"""The switch's sockets: one thread, which sleeps until a port sends."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from sublet.hw import Clock
from sublet.net.offload import complete
from sublet.net.packet import HEADER_SIZE, Offload
from sublet.net.switch import protocol
from sublet.net.switch.forwarding import Forwarding, JoinRefused, Port

FIRST_PORT_LIMIT_S: Final = 20.0
"""How long an empty switch waits for who started it."""
_MESSAGES_A_TURN: Final = 8
_REPORT_INTERVAL_S: Final = 1.0
_BUFFER_SIZE: Final = protocol.MAX_MESSAGE_SIZE + 4
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


@dataclass(eq=False)
class _Connection:
    """A socket, and the port once it has joined."""

    socket: socket.socket
    port: Port | None = None
    closed: bool = False
    reported: Counter[str] = field(default_factory=Counter)
    reported_at: float = 0.0


class SwitchServer:
    """Serves ports until the last one has left.

    Every port is of the same user, but its machine's guest is hostile: whoever breaks the protocol is
    disconnected, and a port that does not read loses packets rather than holding up the others.

    Args:
        listener: A listening SOCK_SEQPACKET socket.
        clock: Ageing and flood rates.
        end: Called when there are no ports; false when somebody is about to join after all.
    """

    def __init__(self, listener: socket.socket, clock: Clock, end: Callable[[], bool]) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._forwarding = Forwarding(clock)
        self._end = end
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._connections: dict[Port, _Connection] = {}
        self._buffer = memoryview(bytearray(_BUFFER_SIZE))

    def serve(self) -> None:
        """Forward until nobody is left."""
        deadline = time.monotonic() + FIRST_PORT_LIMIT_S
        joined = False
        while True:
            limit = None if self._members else max(deadline - time.monotonic(), 0)
            events = self._selector.select(limit)
            for key, _ in events:
                if key.data is None:
                    self._accept()
                else:
                    self._serve(key.data)
            joined = joined or self._members
            if not self._members and (joined or not events) and self._end():
                return

    @property
    def _members(self) -> bool:
        return len(self._selector.get_map()) > 1

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if not is_ours(connection):
                connection.close()
                return
            connection.setblocking(False)
            set_buffers(connection)
            self._selector.register(connection, selectors.EVENT_READ, _Connection(connection))

    def _serve(self, connection: _Connection) -> None:
        try:
            for _ in range(_MESSAGES_A_TURN):
                size, _, flags, _ = connection.socket.recvmsg_into([self._buffer])
                if not size or flags & socket.MSG_TRUNC:
                    self._drop(connection)
                    return
                self._handle(connection, self._buffer[:size])
                if connection.closed:
                    return
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)

    def _handle(self, connection: _Connection, message: memoryview) -> None:
        port = connection.port
        if port is None:
            self._join(connection, protocol.decode_join(message))
        elif protocol.is_json(message):
            offloads = protocol.decode_json(message).get("offloads")
            if isinstance(offloads, int):
                port.offloads = Offload(offloads & 0x7F)
        else:
            self._forward(port, message)
            self._report(connection, port)

    def _join(self, connection: _Connection, join: protocol.Join) -> None:
        try:
            port = self._forwarding.join(join)
        except JoinRefused as error:
            connection.socket.send(protocol.encode_json({"error": str(error)}))
            self._drop(connection)
            return
        connection.port = port
        self._connections[port] = connection
        connection.socket.send(protocol.encode_json({"joined": True}))

    def _forward(self, source: Port, message: memoryview) -> None:
        for target, packets in self._forwarding.forward(source, protocol.split_packets(message)).items():
            self._deliver(target, packets)

    def _deliver(self, target: Port, packets: list[memoryview]) -> None:
        connection = self._connections[target]
        prepared = [made for packet in packets for made in _complete(packet, target.offloads)]
        for count, pieces in protocol.messages(prepared):
            try:
                connection.socket.sendmsg(pieces)
            except BlockingIOError:
                target.counters["dropped.port_full"] += count
            except OSError:
                return  # it has gone; its socket says so next

    def _report(self, connection: _Connection, port: Port) -> None:
        """Tell a machine, once a second, what of its packets was dropped."""
        now = time.monotonic()
        if port.counters != connection.reported and now - connection.reported_at > _REPORT_INTERVAL_S:
            connection.reported, connection.reported_at = Counter(port.counters), now
            with contextlib.suppress(BlockingIOError):
                connection.socket.send(protocol.encode_json({"counters": port.counters}))

    def _drop(self, connection: _Connection) -> None:
        connection.closed = True
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection.port is not None:
            self._forwarding.leave(connection.port)
            del self._connections[connection.port]

    def close(self) -> None:
        """Disconnect everybody."""
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                key.data.socket.close()
        self._selector.close()


def _complete(packet: memoryview, offloads: Offload) -> list[bytes] | tuple[memoryview]:
    """The packet itself, without a copy, unless its target does not take it undone."""
    if not packet[0] | packet[1] or (packet[1] == 0 and offloads & Offload.CHECKSUM):
        return (packet,)
    return complete(bytes(packet), offloads) if len(packet) > HEADER_SIZE else []


def is_ours(connection: socket.socket) -> bool:
    """Whether the other end is a process of the same user."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(raw)[1] == os.getuid())


def set_buffers(connection: socket.socket) -> None:
    """As much room as the host allows, up to what the protocol says."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, protocol.SOCKET_BUFFER_SIZE)
