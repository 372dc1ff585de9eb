"""Frames over stream sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sublet.errors import HostRefused
from sublet.net import MAX_FRAME_SIZE, NullSink, StreamSink, UnixSocketSink, from_frame
from sublet.testing import FakeCard


class Link:
    """A sink with a card, and its peer's socket."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        self.peer.settimeout(20)
        self.sink = StreamSink(ours)
        self.card = FakeCard(self.sink)


@pytest.fixture
def link() -> Iterator[Link]:
    link = Link()
    yield link
    link.sink.close()
    link.peer.close()


def test_frames_have_a_big_endian_length(link: Link) -> None:
    assert link.card.send(b"frame") == 1
    assert link.peer.recv(100) == b"\0\0\0\x05frame"


def test_frames_are_put_together_from_pieces(link: Link) -> None:
    for piece in (b"\0\0", b"\0\x05fr", b"ame\0\0\0\x01x"):
        link.peer.sendall(piece)
    assert [link.card.frame() for _ in range(2)] == [b"frame", b"x"]


def test_a_peer_that_reads_nothing_stops_the_sender_until_it_reads(link: Link) -> None:
    frames = [bytes(60000)] * 20
    taken = link.card.send(*frames)
    assert 0 < taken < 20
    expected = taken * 60004
    while expected:
        expected -= len(link.peer.recv(expected))
    link.card.send_calls.get(timeout=20)
    assert link.card.send(b"last") == 1
    assert link.peer.recv(100) == b"\0\0\0\x04last"


def test_what_the_guest_has_no_room_for_comes_later(link: Link) -> None:
    link.card.room = 1
    link.peer.sendall(b"\0\0\0\x01a\0\0\0\x01b")
    assert link.card.frame() == b"a"
    link.card.room = 5
    link.sink.receive_ready()
    assert link.card.frame() == b"b"


@pytest.mark.parametrize("length", [0, MAX_FRAME_SIZE + 1, 0xFFFF_FFFF])
def test_bad_length_disconnects(link: Link, length: int) -> None:
    link.peer.sendall(length.to_bytes(4, "big"))
    assert link.card.carrier.get(timeout=20) is False
    assert not link.sink.connected


def test_send_after_the_peer_left_is_quiet(link: Link) -> None:
    link.peer.close()
    for _ in range(3):
        assert link.card.send(b"frame") == 1
    link.sink.close()
    assert link.card.send(b"frame") == 1
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
        sink.send([from_frame(b"x")])
        assert peer.recv(5) == b"\0\0\0\x01x"
        sink.close()
        peer.close()


def test_null_sink_takes_everything() -> None:
    sink = NullSink()
    FakeCard(sink)
    assert sink.send([from_frame(b"frame")]) == 1
    sink.close()
