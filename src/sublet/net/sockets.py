"""The kinds ``stream``, ``dgram``, ``unix`` and ``passt``: other programs at the end of a socket.

The framing is that of QEMU's ``-netdev stream`` and ``-netdev dgram``, so that a QEMU, a ``passt`` or a
switch such as VDE's can be at the other end: over a stream each frame comes after its length in four
bytes, big-endian; a datagram is a frame.

Reference: qemu(1) 7.2 "-netdev stream", "-netdev dgram"; passt(1) "--fd".
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sublet.errors import HostRefused, UsageError
from sublet.net.kinds import Nic
from sublet.net.options import NetOptions
from sublet.net.packet import HEADER_SIZE, MAX_FRAME_SIZE, from_frame
from sublet.net.polled_sink import RECEIVE_BATCH, PolledSink
from sublet.net.sink import PacketSink
from sublet.net.stream_sink import StreamSink, UnixSocketSink

_CONNECT_TIMEOUT_S = 10.0


def open_unix(options: NetOptions, nic: Nic) -> PacketSink:
    """A program that listens on a Unix socket."""
    return UnixSocketSink(Path(options.required("path")))


def open_stream(options: NetOptions, nic: Nic) -> PacketSink:
    """A program that listens on a Unix socket (path=) or a TCP port (address=HOST:PORT)."""
    if options.get("address") is None:
        return open_unix(options, nic)
    host, port = _host_and_port(options, "address")
    try:
        connection = socket.create_connection((host, port), _CONNECT_TIMEOUT_S)
    except OSError as error:
        raise HostRefused(
            f"cannot connect to {host}:{port}: {error.strerror or error}",
            remedy="Start the program that listens there first.",
        ) from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return StreamSink(connection)


def open_dgram(options: NetOptions, nic: Nic) -> PacketSink:
    """UDP from local=HOST:PORT to remote=HOST:PORT, or a multicast group; frames from others are dropped."""
    local, remote = _host_and_port(options, "local"), _host_and_port(options, "remote")
    connection = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        connection.bind(local)
        connection.connect(remote)
    except OSError as error:
        connection.close()
        raise HostRefused(
            f"cannot use {local[0]}:{local[1]} to {remote[0]}:{remote[1]}: {error.strerror or error}"
        ) from error
    return DatagramSink(connection)


class DatagramSink(PolledSink):
    """A connected datagram socket, a frame each. Whatever the peer sends, the connection stays.

    Args:
        connection: Owned from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        super().__init__(connection.fileno())
        self._socket = connection

    def read_packets(self) -> list[bytes]:
        """As many as there are, up to a batch."""
        packets: list[bytes] = []
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            while len(packets) < RECEIVE_BATCH:
                packets.append(from_frame(self._socket.recv(MAX_FRAME_SIZE)))
        return packets

    def write_packets(self, packets: Sequence[bytes]) -> int:
        """One system call each; what the host refuses is dropped."""
        for index, packet in enumerate(packets):
            try:
                self._socket.send(packet[HEADER_SIZE:])
            except BlockingIOError:
                return index
            except OSError:
                self.counters["dropped.refused_by_host"] += 1
        return len(packets)

    def release(self) -> None:
        """Close the socket."""
        self._socket.close()


class PasstSink(StreamSink):
    """A ``passt`` of our own, which ends with us: NAT by another program.

    Raises:
        HostRefused: It is not installed, or does not start.
    """

    def __init__(self) -> None:
        program = shutil.which("passt")
        if program is None:
            raise HostRefused("passt is not installed", remedy="Install it, or use --net nat.")
        ours, theirs = socket.socketpair()
        with theirs:
            words = [program, "--foreground", "--quiet", "--fd", str(theirs.fileno())]
            try:
                self._process = subprocess.Popen(
                    words,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            except OSError as error:
                ours.close()
                raise HostRefused(f"cannot start {program}: {error.strerror}") from error
        super().__init__(ours)

    def release(self) -> None:
        """Hang up, at which it ends."""
        super().release()
        self._process.terminate()
        self._process.wait()


def open_passt(options: NetOptions, nic: Nic) -> PacketSink:
    """A ``passt`` with its defaults."""
    return PasstSink()


def _host_and_port(options: NetOptions, name: str) -> tuple[str, int]:
    host, colon, port = options.required(name).rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise options.error(name, "is HOST:PORT")
    try:
        found = socket.getaddrinfo(host or "127.0.0.1", int(port), socket.AF_INET, socket.SOCK_DGRAM)
    except OSError as error:
        raise UsageError(f"--net {options.text}: {name}: {error.strerror or error}") from error
    address = found[0][4]
    return str(address[0]), int(address[1])
