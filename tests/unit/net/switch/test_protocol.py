"""Messages between machines and switches."""

from __future__ import annotations

import random

import pytest

from sublet.net import MAX_PACKET_SIZE
from sublet.net.switch import protocol
from sublet.net.switch.protocol import Join, ProtocolError


def test_packets_survive_in_order_in_messages_within_the_bounds() -> None:
    rng = random.Random(1)
    packets = [rng.randbytes(rng.choice((26, 1500, MAX_PACKET_SIZE))) for _ in range(300)]
    found: list[bytes] = []
    for count, pieces in protocol.messages(packets):
        message = b"".join(pieces)
        assert len(message) <= protocol.MAX_MESSAGE_SIZE
        assert not protocol.is_json(message)
        split = [bytes(packet) for packet in protocol.split_packets(memoryview(message))]
        assert len(split) == count <= protocol.MAX_MESSAGE_PACKETS
        found += split
    assert found == packets


@pytest.mark.parametrize("message", [b"\1", b"\x1a\0\0\0" + bytes(25), bytes(4), b"\x1a\0\0\0" + bytes(27)])
def test_lengths_that_do_not_add_up_are_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(protocol.split_packets(memoryview(message)))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"[]",
        b"{}",
        b'{"mac": 1, "machine": "a"}',
        b'{"mac": "01", "machine": "a"}',
        b'{"mac": "xx"',
        b"\xff{",
    ],
)
def test_what_is_no_request_to_join_is_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_join(message)


def test_a_request_to_join_survives() -> None:
    join = Join("web", "525400000001", isolated=True)
    assert protocol.decode_join(protocol.encode_join(join)) == join
