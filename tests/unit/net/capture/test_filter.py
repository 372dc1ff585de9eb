"""Filters in tcpdump's syntax."""

from __future__ import annotations

import random
import struct

import pytest

from sublet.errors import UsageError
from sublet.net.capture import compile_filter

A, B = bytes((10, 0, 0, 1)), bytes((192, 168, 1, 9))
MAC_A, MAC_B = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
ETHER = MAC_B + MAC_A


def ipv4(protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, fragment, 64, protocol, 0)
    return ETHER + b"\x08\0" + header + A + B + payload


def ipv6(protocol: int, payload: bytes) -> bytes:
    source, destination = bytes(15) + b"\1", b"\xfe\x80" + bytes(13) + b"\2"
    header = struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64)
    return ETHER + b"\x86\xdd" + header + source + destination + payload


PORTS = struct.pack(">HH", 4000, 53) + bytes(16)
FRAMES = {
    "dns": ipv4(17, PORTS),
    "tcp": ipv4(6, PORTS),
    "tcp6": ipv6(6, PORTS),
    "icmp6": ipv6(0, b"\x3a\0" + bytes(6) + bytes(8)),
    "fragment": ipv4(17, PORTS, fragment=100),
    "arp": b"\xff" * 6 + MAC_A + b"\x08\x06" + bytes(14) + A + bytes(6) + B,
    "tagged": ETHER + b"\x81\0\0\5" + ipv4(17, PORTS)[12:],
}
ALL = set(FRAMES)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ALL),
        ("port 53", {"dns", "tcp", "tcp6", "tagged"}),
        ("udp port 53", {"dns", "tagged"}),
        ("udp", {"dns", "fragment", "tagged"}),
        ("src port 53", set()),
        ("tcp dst port 53 and ip6", {"tcp6"}),
        ("portrange 50-60", {"dns", "tcp", "tcp6", "tagged"}),
        ("host 10.0.0.1", {"dns", "tcp", "fragment", "arp", "tagged"}),
        ("dst host 10.0.0.1", set()),
        ("src net 10.0.0.0/8 and not arp", {"dns", "tcp", "fragment", "tagged"}),
        ("net fe80::/10", {"tcp6", "icmp6"}),
        ("arp or icmp6", {"arp", "icmp6"}),
        ("!arp && !ip6", {"dns", "tcp", "fragment", "tagged"}),
        ("not (arp or ip6) and tcp", {"tcp"}),
        ("ether src host 52:54:00:00:00:01 and broadcast", {"arp"}),
        ("ether dst 52:54:00:00:00:02" and "ether dst host 52:54:00:00:00:02", ALL - {"arp"}),
        ("multicast", {"arp"}),
        ("vlan", {"tagged"}),
        ("vlan 6", set()),
        ("less 45", {"arp"}),
        ("greater 46", ALL - {"arp"}),
        ("arp or tcp and ip6", {"arp", "tcp6"}),
    ],
)
def test_what_a_filter_wants(text: str, wanted: set[str]) -> None:
    wants = compile_filter(text)
    assert {name for name, frame in FRAMES.items() if wants(frame)} == wanted


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prot 53", "'prot' is no condition"),
        ("port", "it ends where the number of port should follow"),
        ("port http", "port 'http' is not a number"),
        ("port 65536", "not a number up to 65535"),
        ("host example.com", "names are not looked up"),
        ("net 10.0.0.0/99", "is no network"),
        ("(tcp", "a parenthesis is not closed"),
        ("tcp)", "is not expected there"),
        ("tcp udp", "'udp' is not expected there"),
        ("portrange 9-1", "is no range of ports"),
        ("ether tcp", "after ether"),
        ("ether host 1:2", "is no Ethernet address"),
        ("src tcp", "is not host, net, port"),
        ("tcp | udp", "signs that no filter has"),
        ("not " * 300 + "tcp", "too long"),
    ],
)
def test_what_is_no_filter_is_explained(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match="the filter") as raised:
        compile_filter(text)
    assert problem in raised.value.message


def test_frames_of_nonsense_do_no_harm() -> None:
    rng = random.Random(1)
    wants = compile_filter("port 53 or net 10.0.0.0/8 or vlan 5 or multicast or icmp6")
    for _ in range(3000):
        frame = bytearray(rng.choice(list(FRAMES.values())))
        for _ in range(rng.randrange(8)):
            frame[rng.randrange(len(frame))] = rng.randrange(256)
        wants(bytes(frame[: rng.randrange(len(frame) + 1)]))
