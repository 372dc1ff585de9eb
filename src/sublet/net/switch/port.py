"""A card's port on an internal network."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Final

from sublet.errors import HostRefused, UsageError
from sublet.net.kinds import Nic
from sublet.net.options import NetOptions
from sublet.net.packet import ALL_OFFLOADS, Offload
from sublet.net.polled_sink import PolledSink
from sublet.net.sink import PacketSink
from sublet.net.switch import protocol
from sublet.net.switch.protocol import Join
from sublet.net.switch.rendezvous import connect

JOIN_TIMEOUT_S: Final = 20.0


class SwitchPort(PolledSink):
    """A connection to a switch, which it joins, and joins again when the switch has died.

    Args:
        dial: Connects to the switch, and starts one if there is none.
        join: What the port is to be.

    Raises:
        UsageError: The switch refuses; its reason is the message.
        HostRefused: The switch has gone.
    """

    def __init__(self, dial: Callable[[], socket.socket], join: Join) -> None:
        self._dial, self._join = dial, join
        self._socket = _joined(dial(), join)
        self._guest_offloads = Offload.NONE
        super().__init__(self._socket.fileno(), ALL_OFFLOADS)
        self._buffer = memoryview(bytearray(protocol.MAX_MESSAGE_SIZE + 4))

    def set_guest_offloads(self, offloads: Offload) -> None:
        """Told to the switch, which otherwise does everything for us."""
        self._guest_offloads = offloads
        with contextlib.suppress(OSError):
            self._socket.send(protocol.encode_json({"offloads": int(offloads)}))

    def read_packets(self) -> list[bytes]:
        """Those of one message."""
        try:
            size = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return []
        message = self._buffer[:size]
        if not size:
            raise ConnectionResetError
        if not protocol.is_json(message):
            return [bytes(packet) for packet in protocol.split_packets(message)]
        counters = protocol.decode_json(message).get("counters", {})
        self.counters.update({name: count - self.counters[name] for name, count in counters.items()})
        return []

    def write_packets(self, packets: Sequence[bytes]) -> int:
        """As few messages as possible."""
        taken = 0
        with contextlib.suppress(BlockingIOError):
            for count, pieces in protocol.messages(packets):
                self._socket.sendmsg(pieces)
                taken += count
        return taken

    def reopen(self) -> int:
        """Join the switch that another machine has started meanwhile, or start one."""
        connection = _joined(self._dial(), self._join)
        with self._writing:
            self._socket.close()
            self._socket = connection
        self.set_guest_offloads(self._guest_offloads)
        return connection.fileno()

    def release(self) -> None:
        """Leave the network."""
        self._socket.close()


def _joined(connection: socket.socket, join: Join) -> socket.socket:
    """The connection itself, once the switch has said yes; closed if it does not."""
    try:
        _ask_to_join(connection, join)
        connection.setblocking(False)
    except BaseException:
        connection.close()
        raise
    return connection


def _ask_to_join(connection: socket.socket, join: Join) -> None:
    connection.settimeout(JOIN_TIMEOUT_S)
    try:
        connection.send(protocol.encode_join(join))
        answer = protocol.decode_json(connection.recv(4096))
    except OSError as error:
        raise HostRefused("the network's switch does not answer") from error
    if "error" in answer:
        raise UsageError(str(answer["error"]))


def open_internal(options: NetOptions, nic: Nic) -> PacketSink:
    """The kind ``internal``: name, spoof, isolated, mirror."""
    name = options.get("name") or "default"
    join = Join(
        nic.machine,
        nic.mac.hex(),
        spoof=options.flag("spoof"),
        isolated=options.flag("isolated"),
        mirror=options.flag("mirror"),
    )
    try:
        return SwitchPort(lambda: connect(nic.directory(), name), join)
    except UsageError as error:
        remedy = error.remedy or "Give another mac= or name=."
        raise UsageError(f"--net {options.text}: {error.message}", remedy=remedy) from error
