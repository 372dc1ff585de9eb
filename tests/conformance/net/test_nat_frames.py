"""What the NAT router sends, read by tshark: no packet malformed, no checksum wrong."""

from __future__ import annotations

import ipaddress
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sublet.core import NatEngine
from sublet.net.checksum import internet_checksum
from sublet.net.nat.config import parse_nat
from sublet.net.options import parse_net
from sublet.net.packet import HEADER_SIZE, NO_OFFLOAD

MAC = bytes.fromhex("525400000001")
ROUTER = bytes.fromhex("52550a000202")
EVERYBODY = b"\xff" * 6
MACHINE, GATEWAY, DNS = (ipaddress.IPv4Address(f"10.0.2.{last}").packed for last in (15, 2, 3))
LINK_LOCAL = ipaddress.IPv6Address("fe80::9").packed
_LINKTYPE_ETHERNET = 1
_CHECKS = ("ip.check_checksum", "tcp.check_checksum", "udp.check_checksum")


def ethernet(to: bytes, kind: int, payload: bytes) -> bytes:
    return NO_OFFLOAD + to + MAC + kind.to_bytes(2, "big") + payload


def ipv4(source: bytes, to: bytes, protocol: int, payload: bytes) -> bytes:
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, source, to)
    checksum = internet_checksum(header)
    return header[:10] + checksum.to_bytes(2, "big") + header[12:] + payload


def udp(source: int, to: int, payload: bytes) -> bytes:
    return struct.pack(">HHHH", source, to, 8 + len(payload), 0) + payload


def trusted(frame: bytes) -> bytes:
    """With a transport checksum that is still to be filled in, as offloading drivers send it."""
    return b"\1" + frame[1:]


def dhcp(kind: int, *options: bytes) -> bytes:
    fixed = b"\1\1\6\0" + b"xid!" + bytes(20) + MAC + bytes(10 + 192) + bytes([99, 130, 83, 99])
    body = fixed + bytes([53, 1, kind]) + b"".join(options) + b"\xff"
    return ethernet(EVERYBODY, 0x0800, ipv4(bytes(4), b"\xff" * 4, 17, udp(68, 67, body)))


def conversation() -> Iterator[bytes]:
    """One of everything that the router answers."""
    yield ethernet(EVERYBODY, 0x0806, b"\0\1\x08\0\6\4\0\1" + MAC + MACHINE + bytes(6) + GATEWAY)
    yield dhcp(1)
    yield dhcp(3, b"\x32\4" + MACHINE, b"\x0c\3web")
    yield dhcp(3, b"\x32\4" + bytes([1, 2, 3, 4]))
    echo = b"\x08\0\0\0\0\1\0\1ping"
    echo = echo[:2] + internet_checksum(echo).to_bytes(2, "big") + echo[4:]
    yield ethernet(ROUTER, 0x0800, ipv4(MACHINE, GATEWAY, 1, echo))
    question = b"\0\7\1\0\0\1" + bytes(6) + b"\3web\6sublet\x08internal\0\0\1\0\1"
    yield ethernet(ROUTER, 0x0800, ipv4(MACHINE, DNS, 17, udp(4000, 53, question)))
    yield ethernet(ROUTER, 0x0800, ipv4(MACHINE, bytes([127, 0, 0, 1]), 17, udp(4000, 9, b"denied")))
    syn = struct.pack(">HHIIBBHHH", 4000, 53, 7, 0, 0x50, 2, 1000, 0, 0)
    yield trusted(ethernet(ROUTER, 0x0800, ipv4(MACHINE, DNS, 6, syn)))
    yield trusted(ethernet(ROUTER, 0x0800, ipv4(MACHINE, bytes([127, 0, 0, 1]), 6, syn)))
    everybody6, routers = bytes.fromhex("333300000002"), ipaddress.IPv6Address("ff02::2").packed
    solicitation = b"\x85" + bytes(7)
    header = struct.pack(">IHBB16s16s", 6 << 28, len(solicitation), 58, 255, LINK_LOCAL, routers)
    yield trusted(ethernet(everybody6, 0x86DD, header + solicitation))
    servers = ipaddress.IPv6Address("ff02::1:2").packed
    information = udp(546, 547, b"\x0b\1\2\3\0\1\0\x0a\0\3\0\1" + MAC)
    header = struct.pack(">IHBB16s16s", 6 << 28, len(information), 17, 1, LINK_LOCAL, servers)
    yield trusted(ethernet(bytes.fromhex("333300010002"), 0x86DD, header + information))


def write_pcap(path: Path, frames: list[bytes]) -> None:
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, _LINKTYPE_ETHERNET)
    records = (struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame for frame in frames)
    path.write_bytes(header + b"".join(records))


@pytest.fixture
def answers() -> list[bytes]:
    """The frames that the router answers the conversation with."""
    engine = NatEngine(parse_nat(parse_net("nat"), 1500).for_core(), [])
    try:
        frames: list[bytes] = []
        for packet in conversation():
            engine.send([packet])
            frames += (answer[HEADER_SIZE:] for answer in engine.take(16, 0))
        return frames
    finally:
        engine.close()


def test_tshark_finds_nothing_wrong(answers: list[bytes], tmp_path: Path) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    capture = tmp_path / "answers.pcap"
    write_pcap(capture, answers)
    checks = [word for check in _CHECKS for word in ("-o", f"{check}:TRUE")]
    command = ["tshark", "-r", str(capture), *checks, "-T", "fields", "-e", "_ws.col.Protocol"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    protocols = result.stdout.split()
    assert len(protocols) == len(answers) == 11
    assert set(protocols) == {"ARP", "DHCP", "ICMP", "DNS", "TCP", "ICMPv6", "DHCPv6"}
    wrong = [
        "-Y",
        "_ws.malformed || ip.checksum.status == 0 || tcp.checksum.status == 0 || udp.checksum.status == 0",
    ]
    found = subprocess.run([*command[:3], *checks, *wrong], capture_output=True, text=True, check=True)
    assert found.stdout == ""
