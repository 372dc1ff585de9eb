"""Ports on a switch in its own process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sublet.errors import UsageError
from sublet.net import ALL_OFFLOADS, HEADER_SIZE, from_frame
from sublet.net.kinds import Nic, open_network
from sublet.net.options import parse_net
from sublet.net.packet import GSO_TCPV4, NEEDS_CHECKSUM, PacketHeader
from sublet.net.switch.rendezvous import connect, guard, socket_path
from sublet.testing import FakeCard, FakeClock

Plug = Callable[..., FakeCard]


def mac(number: int) -> bytes:
    return b"\x52\x54\0\0\0" + bytes((number,))


def frame(destination: int, source: int, data: bytes = b"") -> bytes:
    return mac(destination) + mac(source) + b"\x88\xb5" + data.ljust(46, b"\0")


@pytest.fixture
def plug(tmp_path: Path) -> Iterator[Plug]:
    with contextlib.ExitStack() as cards:

        def plug(number: int, options: str = "") -> FakeCard:
            nic = Nic(f"m{number}", "net0", mac(number), 1500, 1, FakeClock(), lambda: tmp_path)
            cable = open_network(parse_net(f"internal,name=lab{options}"), nic)
            cards.callback(cable.close)
            return FakeCard(cable)

        yield plug
    deadline = time.monotonic() + 20
    while socket_path(tmp_path, "lab").exists():
        assert time.monotonic() < deadline, "the switch ends with its last port"
        time.sleep(0.02)


def test_frames_reach_their_address_and_nobody_else(plug: Plug) -> None:
    cards = {number: plug(number) for number in (1, 2, 3)}
    cards[1].send(frame(2, 1, b"private"))
    cards[1].send(b"\xff" * 6 + frame(0, 1, b"public")[6:])
    assert cards[2].frame() == frame(2, 1, b"private")
    assert cards[3].frame()[14:20] == b"public"


def test_large_packets_cross_whole_where_they_are_wanted(plug: Plug) -> None:
    taker, other, sender = plug(1), plug(2), plug(3)
    taker.sink.set_guest_offloads(ALL_OFFLOADS)
    header = PacketHeader(NEEDS_CHECKSUM, GSO_TCPV4, 54, 1448, 34, 16).pack()
    ip = b"\x45\0" + (40 + 60000).to_bytes(2, "big") + bytes.fromhex("000100004006000001020304 05060708")
    tcp = bytes.fromhex("04d20050000003e800000000501000ff00000000")
    # A connection is read in order: what the switch passes on from the taker follows its offloads.
    taker.send(frame(3, 1, b"ready"))
    assert sender.frame() == frame(3, 1, b"ready")
    packet = header + mac(1) + mac(3) + b"\x08\0" + ip + tcp + bytes(60000)
    sender.sink.send([packet, header + mac(2) + packet[HEADER_SIZE + 6 :]])
    assert taker.packets.get(timeout=20) == packet
    assert sum(len(other.frame()) - 54 for _ in range(42)) == 60000


def test_one_address_is_refused_twice(plug: Plug) -> None:
    plug(1)
    with pytest.raises(UsageError, match="m1 has the address 52:54:00:00:00:01") as raised:
        plug(1)
    assert "mac=" in raised.value.remedy


def test_a_port_that_does_not_read_loses_packets_and_holds_up_nobody(plug: Plug) -> None:
    sleeper, reader, sender = plug(1), plug(2), plug(3)
    sleeper.room = 0
    for _ in range(400):
        while not sender.sink.send([from_frame(frame(1, 3, bytes(60000)))]):
            sender.send_calls.get(timeout=20)
    sender.send(frame(2, 3, b"still here"))
    assert reader.frame()[14:24] == b"still here"


def test_spoofed_frames_are_dropped_and_counted(plug: Plug) -> None:
    victim, attacker = plug(1), plug(2)
    attacker.send(frame(1, 9))
    attacker.send(frame(1, 2))
    assert victim.frame() == frame(1, 2)
    deadline = time.monotonic() + 20
    while attacker.sink.statistics().get("dropped.spoofed") != 1:
        assert time.monotonic() < deadline
        attacker.send(frame(1, 2))
        time.sleep(0.02)


def test_ports_join_a_new_switch_when_theirs_is_killed(plug: Plug, tmp_path: Path) -> None:
    cards = [plug(1), plug(2)]
    for _ in range(2):
        os.kill(switch_process(tmp_path), signal.SIGKILL)
        for card in cards:
            assert not card.carrier.get(timeout=20)
        for card in cards:
            assert card.carrier.get(timeout=20)
        cards[0].send(frame(2, 1, b"again"))
        assert cards[1].frame()[14:19] == b"again"
    assert cards[0].sink.statistics()["reconnected"] == 2


def test_a_port_closes_while_its_switch_is_gone(plug: Plug, tmp_path: Path) -> None:
    card = plug(1)
    with guard(tmp_path, "lab"):  # nobody can start another
        os.kill(switch_process(tmp_path), signal.SIGKILL)
        assert not card.carrier.get(timeout=20)
        assert card.send(frame(2, 1)) == 1
    card.sink.close()
    socket_path(tmp_path, "lab").unlink(missing_ok=True)


def switch_process(directory: Path) -> int:
    """The process of the switch whose socket is in ``directory``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if b"sublet.net.switch.process" in words and str(socket_path(directory, "lab")).encode() in words:
                found.append(int(entry.parent.name))
    assert len(found) == 1, "one switch"
    return found[0]


def switches(pid: int) -> int:
    """How often the threads of a process went to sleep, so far."""
    statuses = (task / "status" for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int(re.findall(r"\nvoluntary_ctxt_switches:\t(\d+)", one.read_text())[0]) for one in statuses)


def test_an_idle_network_wakes_nobody(plug: Plug, tmp_path: Path) -> None:
    cards = [plug(1), plug(2)]
    cards[0].send(frame(2, 1, b"ping"))
    assert cards[1].frame() == frame(2, 1, b"ping")
    time.sleep(0.2)
    ports = [thread.native_id for thread in threading.enumerate() if thread.name == "net"]
    tasks = [Path(f"/proc/self/task/{number}/status") for number in ports]
    process = switch_process(tmp_path)
    before = switches(process), [task.read_text().split("voluntary")[1] for task in tasks]
    time.sleep(1)
    assert len(tasks) == 2
    assert (switches(process), [task.read_text().split("voluntary")[1] for task in tasks]) == before


@pytest.mark.parametrize("message", [b"\x01", b'{"a"', b"\xff" * 200_000, b"[]"])
def test_nonsense_disconnects_only_who_said_it(plug: Plug, tmp_path: Path, message: bytes) -> None:
    victim, friend = plug(1), plug(2)
    with connect(tmp_path, "lab") as hostile:
        hostile.settimeout(20)
        hostile.send(message)
        with contextlib.suppress(ConnectionResetError):
            assert hostile.recv(100) == b""
    friend.send(frame(1, 2))
    assert victim.frame() == frame(1, 2)
