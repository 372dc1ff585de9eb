"""A host-only port as a DHCP server. A pipe stands for the TAP device."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from sublet.net import HEADER_SIZE, from_frame
from sublet.net.checksum import ones_complement_sum
from sublet.net.tap.dhcp import Kind, Server
from sublet.net.tap.hostonly import HostOnlySink
from sublet.net.tap.leases import LeaseFile
from sublet.testing import FakeCard, FakeClock

HOST = ipaddress.IPv4Interface("192.168.77.1/24")
GUEST_MAC, HOST_MAC = b"\x52\x54\0\0\0\1", b"\2\0\0\0\0\1"


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[FakeCard, socket.socket]]:
    """The card, and the host's end of the device."""
    device, host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    device.setblocking(False)
    host.settimeout(20)
    leases = LeaseFile(tmp_path / "leases", HOST, 3600, FakeClock().now_ns)
    sink = HostOnlySink([os.dup(device.fileno())], GUEST_MAC, Server(HOST, HOST_MAC), leases)
    card = FakeCard(sink)
    yield card, host
    sink.close()
    device.close()
    host.close()


def request(kind: int, options: bytes = b"", *, mac: bytes = GUEST_MAC, relay: int = 0) -> bytes:
    """A client's frame."""
    body = struct.pack("!4B4s4x4x4x4x4x16s192x", 1, 1, 6, 0, b"abcd", mac.ljust(16, b"\0"))
    body = body[:24] + bytes((relay,)) * 4 + body[28:]
    body += bytes((99, 130, 83, 99, 53, 1, kind)) + options + b"\xff"
    udp = struct.pack("!4H", 68, 67, 8 + len(body), 0) + body
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    return b"\xff" * 6 + mac + b"\x08\0" + ip + udp


def option(frame: bytes, wanted: int) -> bytes:
    """An option of an answer."""
    rest = frame[14 + 20 + 8 + 240 :]
    while rest[0] not in (wanted, 255):
        rest = rest[2 + rest[1] :]
    return rest[2 : 2 + rest[1]]


def test_a_machine_gets_an_address(ends: tuple[FakeCard, socket.socket]) -> None:
    card, _ = ends
    card.send(request(Kind.DISCOVER))
    offer = card.frame()
    yours = offer[14 + 28 + 16 :][:4]
    assert option(offer, 53) == bytes((Kind.OFFER,))
    assert ipaddress.IPv4Address(yours) in HOST.network
    card.send(request(Kind.REQUEST, bytes((50, 4)) + yours + bytes((54, 4)) + HOST.ip.packed))
    answer = card.frame()
    assert answer[:12] == GUEST_MAC + HOST_MAC
    assert option(answer, 53) == bytes((Kind.ACK,))
    assert option(answer, 1) == HOST.netmask.packed
    assert option(answer, 3) == b"", "nothing leads out"
    ip, udp = answer[14:34], answer[34:]
    assert ones_complement_sum(ip) == 0xFFFF
    assert ones_complement_sum(ip[12:20] + struct.pack("!2H", 17, len(udp)) + udp) == 0xFFFF
    assert [row["address"] for row in card.sink.inspect("leases")] == [str(ipaddress.IPv4Address(yours))]  # type: ignore[attr-defined]


def test_an_address_of_another_network_is_refused(ends: tuple[FakeCard, socket.socket]) -> None:
    card, _ = ends
    card.send(request(Kind.REQUEST, bytes((50, 4, 10, 0, 0, 9))))
    answer = card.frame()
    assert option(answer, 53) == bytes((Kind.NAK,))
    assert answer[:6] == b"\xff" * 6


@pytest.mark.parametrize(
    "frame",
    [
        request(Kind.DISCOVER, relay=1),
        request(99),
        request(Kind.OFFER),
        request(Kind.DISCOVER)[:200],
        request(Kind.DISCOVER)[:42],
        request(Kind.DISCOVER, b"\x32\xff"),
    ],
    ids=["relayed", "no kind", "a server's", "cut", "empty", "option past the end"],
)
def test_nonsense_reaches_nobody(ends: tuple[FakeCard, socket.socket], frame: bytes) -> None:
    """Neither the host nor another machine; what comes before and after it in a batch does."""
    card, host = ends
    plain = b"\xff" * 6 + GUEST_MAC + b"\x88\xb5" + bytes(46)
    assert card.sink.send([from_frame(plain), from_frame(frame), from_frame(plain)]) == 3
    assert [host.recv(4096)[HEADER_SIZE:] for _ in range(2)] == [plain, plain]
    card.send(request(Kind.DISCOVER))
    assert option(card.frame(), 53) == bytes((Kind.OFFER,))


def lease(card: FakeCard) -> bytes:
    """Ask for an address, and get it."""
    card.send(request(Kind.DISCOVER))
    yours = card.frame()[14 + 28 + 16 :][:4]
    card.send(request(Kind.REQUEST, bytes((50, 4)) + yours))
    assert option(card.frame(), 53) == bytes((Kind.ACK,))
    return yours


def test_a_declined_address_is_not_offered_again(ends: tuple[FakeCard, socket.socket]) -> None:
    card, _ = ends
    declined = lease(card)
    card.send(request(Kind.DECLINE, bytes((50, 4)) + declined + bytes((54, 4)) + HOST.ip.packed))
    assert lease(card) != declined


def test_information_comes_without_a_lease(ends: tuple[FakeCard, socket.socket]) -> None:
    """RFC 2131 §4.3.5: no yiaddr, no lease time, and nothing is given out."""
    card, _ = ends
    card.send(request(Kind.INFORM))
    answer = card.frame()
    assert option(answer, 53) == bytes((Kind.ACK,))
    assert (answer[14 + 28 + 16 :][:4], option(answer, 51)) == (bytes(4), b"")
    assert card.sink.inspect("leases") == []  # type: ignore[attr-defined]


def test_a_released_address_is_free_for_others(ends: tuple[FakeCard, socket.socket]) -> None:
    card, _ = ends
    lease(card)
    card.send(request(Kind.RELEASE, bytes((54, 4)) + HOST.ip.packed))
    assert card.sink.inspect("leases") == []  # type: ignore[attr-defined]


def test_what_is_said_to_another_server_changes_nothing(ends: tuple[FakeCard, socket.socket]) -> None:
    card, _ = ends
    lease(card)
    card.send(request(Kind.RELEASE, bytes((54, 4, 192, 168, 77, 9))))
    assert len(card.sink.inspect("leases")) == 1  # type: ignore[attr-defined]
