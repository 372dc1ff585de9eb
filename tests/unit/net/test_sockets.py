"""Other programs at the end of a socket."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from sublet.errors import HostRefused, UsageError
from sublet.net.kinds import Nic, open_network
from sublet.net.options import parse_net
from sublet.testing import FakeCard, FakeClock

FRAME = bytes(range(60))


def plug(text: str) -> FakeCard:
    nic = Nic("m", "net0", bytes.fromhex("525400000001"), 1500, 1, FakeClock(), lambda: Path("/nonexistent"))
    return FakeCard(open_network(parse_net(text), nic))


def test_a_tcp_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        card = plug(f"stream,address=127.0.0.1:{server.getsockname()[1]}")
        peer, _ = server.accept()
        with peer:
            card.send(FRAME)
            assert peer.recv(100) == b"\0\0\0\x3c" + FRAME
        card.sink.close()


def test_datagrams_both_ways_and_a_peer_that_comes_late() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(20)
        port = peer.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            own = probe.getsockname()[1]
        card = plug(f"dgram,local=127.0.0.1:{own},remote=127.0.0.1:{port}")
        card.send(FRAME)
        data, address = peer.recvfrom(100)
        assert data == FRAME
        peer.sendto(FRAME[::-1], address)
        assert card.frame() == FRAME[::-1]
    for _ in range(3):
        assert card.send(FRAME) == 1, "nobody listens, and the machine goes on"
    card.sink.close()


@pytest.mark.parametrize(
    "text", ["dgram,local=1", "dgram,local=127.0.0.1:0,remote=127.0.0.1:1", "stream", "stream,address=x"]
)
def test_bad_addresses_are_named(text: str) -> None:
    with pytest.raises(UsageError, match="--net"):
        plug(text)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(HostRefused, match="cannot connect"):
        plug(f"stream,address=127.0.0.1:{port}")


def test_passt_answers_a_dhcp_request_or_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostRefused, match="passt is not installed"):
        plug("passt")


@pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")
def test_passt_answers_an_arp_request() -> None:
    card = plug("passt")
    arp = bytes.fromhex("0001080006040001525400000001 0a000263 000000000000 0a000202")
    card.send(b"\xff" * 6 + bytes.fromhex("525400000001") + b"\x08\x06" + arp)
    answer = card.frame()
    assert answer[12:14] == b"\x08\x06"
    card.sink.close()
