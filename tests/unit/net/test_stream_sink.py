"""Frames over stream sockets."""

from __future__ import annotations

import queue
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sublet.errors import HostRefused
from sublet.net import MAX_FRAME_SIZE, NullSink, StreamSink, UnixSocketSink


class Link:
    """A sink, its peer's socket and what was received."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        self.peer.settimeout(20)
        self.received: queue.Queue[bytes] = queue.Queue()
        self.sink = StreamSink(ours)
        self.sink.attach(self.receive)

    def receive(self, frame: bytes) -> bool:
        self.received.put(frame)
        return True


@pytest.fixture
def link() -> Iterator[Link]:
    link = Link()
    yield link
    link.sink.close()
    link.peer.close()


def test_frames_have_a_big_endian_length(link: Link) -> None:
    link.sink.send(b"frame")
    assert link.peer.recv(100) == b"\0\0\0\x05frame"


def test_frames_are_put_together_from_pieces(link: Link) -> None:
    for piece in (b"\0\0", b"\0\x05fr", b"ame\0\0\0\x01x"):
        link.peer.sendall(piece)
    assert [link.received.get(timeout=20) for _ in range(2)] == [b"frame", b"x"]


@pytest.mark.parametrize("length", [0, MAX_FRAME_SIZE + 1, 0xFFFF_FFFF])
def test_bad_length_disconnects(link: Link, length: int) -> None:
    link.peer.sendall(length.to_bytes(4, "big"))
    assert link.peer.recv(1) == b""
    assert not link.sink.connected


def test_send_after_the_peer_left_is_quiet(link: Link) -> None:
    link.peer.close()
    for _ in range(3):
        link.sink.send(b"frame")
    link.sink.close()
    link.sink.send(b"frame")
    assert not link.sink.connected


def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "net"
    with pytest.raises(HostRefused, match="cannot connect"):
        UnixSocketSink(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        sink = UnixSocketSink(path)
        peer, _ = server.accept()
        sink.send(b"x")
        assert peer.recv(5) == b"\0\0\0\x01x"
        sink.close()
        peer.close()


def test_null_sink_takes_everything() -> None:
    sink = NullSink()
    sink.attach(lambda frame: True)
    sink.send(b"frame")
    sink.close()
