"""Frames over a stream socket, each after its length in four bytes, big-endian.

This is the framing of QEMU's ``-netdev stream``, so either end may be a QEMU, passt or another sublet.

Reference: QEMU 7.2 "net/stream.c" wire format; passt(1) "--socket".
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from pathlib import Path

from sublet.errors import HostRefused
from sublet.net.sink import MAX_FRAME_SIZE, FrameReceiver

_PREFIX_SIZE = 4
_SEND_TIMEOUT_S = 5


class StreamSink:
    """One connected stream socket. A peer that breaks the framing or hangs up ends the connection.

    The peer is hostile: a length past ``MAX_FRAME_SIZE`` disconnects it, and at most one frame is held.

    Args:
        connection: Connected; owned from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT_S, 0))
        self._socket = connection
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether frames still go anywhere."""
        return not self._closed

    def attach(self, receive: FrameReceiver) -> None:
        """Start the receiving thread."""
        self._thread = threading.Thread(target=self._receive_all, args=(receive,), name="net", daemon=True)
        self._thread.start()

    def _receive_all(self, receive: FrameReceiver) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as stream:
            while not self._closed:
                length = int.from_bytes(stream.read(_PREFIX_SIZE), "big")
                if not 0 < length <= MAX_FRAME_SIZE:
                    break
                frame = stream.read(length)
                if len(frame) < length:
                    break
                receive(frame)
        self._disconnect()

    def send(self, frame: bytes) -> None:
        """Send a frame; a peer that takes nothing for some seconds is disconnected."""
        if self._closed:
            return
        try:
            self._socket.sendall(len(frame).to_bytes(_PREFIX_SIZE, "big") + frame)
        except OSError:
            self._disconnect()

    def _disconnect(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Disconnect, wait for the receiving thread and close the socket."""
        self._disconnect()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
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
