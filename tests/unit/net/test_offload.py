"""Checksums and segmentation in software."""

from __future__ import annotations

import random
import struct

import pytest

from sublet.net import ALL_OFFLOADS, HEADER_SIZE, Offload
from sublet.net.checksum import internet_checksum, ones_complement_sum
from sublet.net.offload import complete
from sublet.net.packet import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CHECKSUM, PacketHeader

ETHERNET = bytes(12)
SOURCE, DESTINATION = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))


def by_definition(data: bytes) -> int:
    """RFC 1071 §1: add 16-bit words and fold the carries."""
    total = sum(struct.unpack(f">{len(data + bytes(len(data) % 2)) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("size", [0, 1, 2, 3, 20, 1460, 65535])
def test_sum_is_that_of_the_words(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert ones_complement_sum(data) == by_definition(data)
    assert ones_complement_sum(b"\xff\xff" * 4) == 0xFFFF


def ipv4(protocol: int, payload: bytes) -> bytes:
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0xFFFF, 0, 64, protocol, 0)
    return ETHERNET + b"\x08\0" + header + SOURCE + DESTINATION + payload


def ipv6(protocol: int, payload: bytes) -> bytes:
    return (
        ETHERNET
        + b"\x86\xdd"
        + struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64)
        + bytes(32)
        + payload
    )


def tcp(data: bytes, flags: int = 0x10, sequence: int = 1000) -> bytes:
    return struct.pack(">HHIIBBHHH", 1, 2, sequence, 0, 0x50, flags, 1000, 0, 0) + data


def valid(frame: bytes) -> bool:
    """Whether lengths and checksums of a TCP or UDP segment are right."""
    if frame[12:14] == b"\x08\0":
        right = (
            internet_checksum(frame[14:34]) == 0 and int.from_bytes(frame[16:18], "big") == len(frame) - 14
        )
        protocol, addresses, segment = frame[23], frame[26:34], frame[34:]
    else:
        right = int.from_bytes(frame[18:20], "big") == len(frame) - 54
        protocol, addresses, segment = frame[20], frame[22:54], frame[54:]
    pseudo = addresses + struct.pack(">HH", protocol, len(segment))
    return right and internet_checksum(pseudo + segment) == 0


def test_a_packet_with_nothing_to_do_is_itself() -> None:
    packet = bytes(HEADER_SIZE) + ipv4(6, tcp(b""))
    assert complete(packet, Offload.NONE)[0] is packet


def test_what_is_accepted_is_left_undone() -> None:
    packet = PacketHeader(NEEDS_CHECKSUM, GSO_TCPV4, 54, 100, 34, 16).pack() + ipv4(6, tcp(bytes(1000)))
    assert complete(packet, ALL_OFFLOADS)[0] is packet
    assert len(complete(packet, ALL_OFFLOADS & ~Offload.TSO4)) == 10


def test_a_partial_checksum_is_filled_in() -> None:
    """virtio 1.2 §5.1.6.2: the field holds the sum of the pseudo header."""
    segment = bytearray(tcp(b"hello"))
    struct.pack_into(">H", segment, 16, by_definition(SOURCE + DESTINATION + struct.pack(">HH", 6, 25)))
    packet = PacketHeader(NEEDS_CHECKSUM, checksum_start=34, checksum_offset=16).pack() + ipv4(
        6, bytes(segment)
    )
    (result,) = complete(packet, Offload.NONE)
    pseudo = SOURCE + DESTINATION + struct.pack(">HH", 6, 25)
    assert internet_checksum(pseudo + result[HEADER_SIZE + 34 :]) == 0
    assert result[0] == 0


@pytest.mark.parametrize(("make", "kind"), [(ipv4, GSO_TCPV4), (ipv6, GSO_TCPV6)])
def test_tcp_is_cut_into_valid_segments(make: object, kind: int) -> None:
    data = random.Random(1).randbytes(3500)
    frame = (ipv4 if make is ipv4 else ipv6)(6, tcp(data, flags=0x98 | 1, sequence=0xFFFF_FF00))
    packets = complete(PacketHeader(NEEDS_CHECKSUM, kind | GSO_ECN, 0, 1000).pack() + frame, Offload.NONE)
    frames = [packet[HEADER_SIZE:] for packet in packets]
    assert all(valid(frame) for frame in frames)
    transport = 34 if make is ipv4 else 54
    assert b"".join(frame[transport + 20 :] for frame in frames) == data
    sequences = [int.from_bytes(frame[transport + 4 : transport + 8], "big") for frame in frames]
    assert sequences == [(0xFFFF_FF00 + 1000 * i) & 0xFFFF_FFFF for i in range(4)]
    # CWR only on the first (RFC 3168 §6.1.2), FIN and PSH only on the last.
    assert [frame[transport + 13] for frame in frames] == [0x90, 0x10, 0x10, 0x19]


def test_ipv4_identifications_follow_each_other() -> None:
    packets = complete(
        PacketHeader(NEEDS_CHECKSUM, GSO_TCPV4, 0, 500).pack() + ipv4(6, tcp(bytes(1000))), Offload.NONE
    )
    assert [packet[HEADER_SIZE + 18 : HEADER_SIZE + 20] for packet in packets] == [b"\xff\xff", b"\0\0"]


def test_udp_datagrams_are_told_apart() -> None:
    udp = struct.pack(">HHHH", 1, 2, 8 + 250, 0) + bytes(range(250))
    packets = complete(PacketHeader(NEEDS_CHECKSUM, GSO_UDP_L4, 0, 100).pack() + ipv4(17, udp), Offload.NONE)
    frames = [packet[HEADER_SIZE:] for packet in packets]
    assert [len(frame) - 42 for frame in frames] == [100, 100, 50]
    assert all(valid(frame) for frame in frames)


@pytest.mark.parametrize(
    "header",
    [
        PacketHeader(NEEDS_CHECKSUM, checksum_start=60000),
        PacketHeader(NEEDS_CHECKSUM, GSO_TCPV4, gso_size=0),
        PacketHeader(NEEDS_CHECKSUM, GSO_TCPV6, gso_size=100),
        PacketHeader(NEEDS_CHECKSUM, GSO_UDP_L4, gso_size=100),
        PacketHeader(0, 0x7F, gso_size=100),
    ],
)
def test_a_header_that_lies_makes_nothing(header: PacketHeader) -> None:
    assert complete(header.pack() + ipv4(6, tcp(bytes(1000))), Offload.NONE) == []


def test_random_headers_and_frames_do_no_harm() -> None:
    rng = random.Random(2)
    for _ in range(3000):
        frame = ipv4(rng.choice((6, 17)), tcp(rng.randbytes(rng.randrange(200))))
        cut = frame[: rng.randrange(14, len(frame) + 1)]
        for packet in complete(rng.randbytes(HEADER_SIZE) + cut, Offload(rng.randrange(128))):
            assert len(packet) <= HEADER_SIZE + len(cut)
