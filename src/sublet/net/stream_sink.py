"""Frames over a stream socket, each after its length in four bytes, big-endian.

This is the framing of QEMU's ``-netdev stream``, so either end may be a QEMU, passt or another sublet.

Reference: QEMU 7.2 "net/stream.c" wire format; passt(1) "--socket".
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sublet.errors import HostRefused
from sublet.net.packet import HEADER_SIZE, MAX_FRAME_SIZE, from_frame
from sublet.net.polled_sink import RECEIVE_BATCH, PolledSink

_PREFIX_SIZE: Final = 4
_READ_SIZE: Final = 1 << 17


class StreamSink(PolledSink):
    """One connected stream socket. A peer that breaks the framing or hangs up ends the connection.

    The peer is hostile: a length past ``MAX_FRAME_SIZE`` disconnects it, and at most one incomplete
    frame beside one batch is held.

    Args:
        connection: Connected; owned from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        super().__init__(connection.fileno())
        self._socket = connection
        self._read = bytearray()
        self._unsent = memoryview(b"")

    def read_packets(self) -> list[bytes]:
        """The complete frames of what has come; the rest waits for more."""
        packets = self._parse()
        if packets:
            return packets
        with contextlib.suppress(BlockingIOError):
            data = self._socket.recv(_READ_SIZE)
            if not data:
                raise ConnectionResetError
            self._read += data
        return self._parse()

    def _parse(self) -> list[bytes]:
        packets: list[bytes] = []
        position = 0
        while len(packets) < RECEIVE_BATCH and len(self._read) - position >= _PREFIX_SIZE:
            start = position + _PREFIX_SIZE
            length = int.from_bytes(self._read[position:start], "big")
            if not 0 < length <= MAX_FRAME_SIZE:
                raise ConnectionAbortedError
            if len(self._read) < start + length:
                break
            packets.append(from_frame(bytes(self._read[start : start + length])))
            position = start + length
        del self._read[:position]
        return packets

    def write_packets(self, packets: Sequence[bytes]) -> int:
        """Write frames until one does not fit; that one is taken and ``flush`` writes its rest."""
        for index, packet in enumerate(packets):
            if not self.flush():
                return index
            frame = packet[HEADER_SIZE:]
            self._unsent = memoryview(len(frame).to_bytes(_PREFIX_SIZE, "big") + frame)
        self.flush()
        return len(packets)

    def flush(self) -> bool:
        """Write the rest of the frame that was taken last."""
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        return not self._unsent

    def release(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class UnixSocketSink(StreamSink):
    """A ``StreamSink`` to a listening UNIX socket.

    Raises:
        HostRefused: Nobody listens at ``path``.
    """

    def __init__(self, path: Path) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            raise HostRefused(
                f"cannot connect to the network socket {path}: {error.strerror}",
                remedy="Start the program that listens there first.",
            ) from error
        super().__init__(connection)
