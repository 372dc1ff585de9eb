"""Guests on real networks: a LAN in a network namespace, the host's bridge, a switch of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.guest import SUBLET_RUN, Guest

from sublet.guest import PreparedGuest

pytestmark = pytest.mark.guest

_LISTEN = (
    "import socket, sys; print(socket.create_connection((sys.argv[1], 5001), 20).makefile().read(), end='')"
)
_TOOLS = ("ip", "dnsmasq", "tshark")


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


class Lan:
    """Two namespaces joined by a cable: ``host``, where machines run, and ``lan``, a neighbour.

    The neighbour has 10.77.0.1 and gives out addresses from .100 on.
    """

    def __init__(self, directory: Path) -> None:
        number = os.getpid()
        self.host, self.lan = f"sublet-host{number}", f"sublet-lan{number}"
        self.interface = f"slh{number}"[:15]
        for name in (self.host, self.lan):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        peer = ["type", "veth", "peer", "name", "lan0", "netns", self.lan]
        run("ip", "link", "add", self.interface, "netns", self.host, *peer)
        run("ip", "-n", self.lan, "addr", "add", "10.77.0.1/24", "dev", "lan0")
        run("ip", "-n", self.lan, "link", "set", "lan0", "up")
        run("ip", "-n", self.host, "link", "set", self.interface, "up")
        leases = f"--dhcp-leasefile={directory / 'leases'}"
        served = ["--dhcp-range=10.77.0.100,10.77.0.200", "--port=0", "--no-ping", "--interface=lan0", leases]
        dnsmasq = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file="]
        self._dnsmasq = subprocess.Popen(["ip", "netns", "exec", self.lan, *dnsmasq, *served])

    def guest(self, *arguments: str) -> Guest:
        """A machine at its prompt, in the host's namespace."""
        command = ("ip", "netns", "exec", self.host, *SUBLET_RUN)
        guest = Guest(["--memory", "256M", *arguments], command=command)
        guest.expect(r"# ")
        return guest

    def close(self) -> None:
        self._dnsmasq.terminate()
        self._dnsmasq.wait()
        for name in (self.host, self.lan):
            run("ip", "netns", "del", name)


@pytest.fixture
def lan(tmp_path: Path, default_guest: PreparedGuest) -> Iterator[Lan]:
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root, and {', '.join(_TOOLS)}")
    try:
        run("ip", "netns", "add", f"sublet-probe{os.getpid()}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces: {error.stderr}")
    run("ip", "netns", "del", f"sublet-probe{os.getpid()}")
    lan = Lan(tmp_path)
    yield lan
    lan.close()


def links(lan: Lan) -> str:
    return run("ip", "-n", lan.host, "-br", "link")


def test_bridged_guest_is_a_neighbour_and_is_recorded(lan: Lan, tmp_path: Path) -> None:
    """An address by DHCP, the neighbour answers, and tshark reads the capture; nothing stays behind."""
    record = tmp_path / "bridged.pcapng"
    name = f"bridged-{os.getpid()}"
    with contextlib.closing(
        lan.guest("--net", f"bridged,interface={lan.interface}", "--name", name)
    ) as guest:
        words = [*SUBLET_RUN[:-1], "net", "capture", name, "--out", str(record), "--filter", "arp or icmp"]
        capture = subprocess.Popen([*words, "--seconds", "300"])
        while not record.exists():
            time.sleep(0.05)
        guest.run("udhcpc -i eth0 -n -q")
        assert "inet 10.77.0.1" in guest.run("ip addr show eth0")
        assert " 0% packet loss" in guest.run("ping -c 3 10.77.0.1")
        assert "slm" in links(lan)
        guest.type("poweroff -f\n")
        assert guest.wait() == 0
        assert capture.wait(60) == 0
    assert "slm" not in links(lan)
    seen = run("tshark", "-r", str(record), "-T", "fields", "-e", "icmp.type", "-e", "_ws.malformed")
    assert seen.split().count("8") == 3
    assert seen.split().count("0") == 3
    assert "Malformed" not in seen


def test_host_only_network_reaches_the_host_and_vanishes_even_after_a_kill(lan: Lan) -> None:
    options = "hostonly,name=dev,address=192.168.77.1/24"
    with contextlib.closing(lan.guest("--net", options, "--name", f"hostonly-{os.getpid()}")) as guest:
        guest.run("until ip addr show eth0 | grep -q 'inet 192.168.77'; do sleep 1; done")
        assert " 0% packet loss" in guest.run("ping -c 3 192.168.77.1")
        assert "slh-dev" in links(lan)
        address = guest.run("ip -o -4 addr show eth0").split("inet ")[1].partition("/")[0]
        guest.run("(echo from the guest | nc -l -p 5001) > /dev/null 2>&1 & sleep 1")
        assert (
            run("ip", "netns", "exec", lan.host, sys.executable, "-c", _LISTEN, address) == "from the guest\n"
        )
        mac = guest.run("cat /sys/class/net/eth0/address").strip()
        words = ["ip", "netns", "exec", lan.host, *SUBLET_RUN, "--net", f"{options},mac={mac}"]
        twin = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert f"another machine has the address {mac} on slh-dev" in twin.stderr
        name = f"hostonly-{os.getpid()}"
        assert address in run(*SUBLET_RUN[:-1], "net", "leases", name)
    assert "slh-dev" in links(lan), "killed, the machine could not remove it"
    with contextlib.closing(lan.guest("--net", "hostonly,name=other")) as guest:
        assert "slh-dev" not in links(lan), "but the next one does"
        guest.type("poweroff -f\n")
        assert guest.wait() == 0
    assert "slh-" not in links(lan)


def test_two_guests_with_different_cards_meet_on_an_internal_network(default_guest: PreparedGuest) -> None:
    """Debian's e1000 driver and virtio-net, segmentation offload and all; a file survives both ways."""
    network = f"internal,name=test{os.getpid()}"
    machines = (["default-amd64", "--net", f"{network},model=e1000"], ["--net", network])
    with contextlib.ExitStack() as stack:
        guests = []
        for number, arguments in enumerate(machines, 1):
            guest = stack.enter_context(contextlib.closing(Guest(["--memory", "256M", *arguments])))
            guest.expect(r"# ")
            guest.run(f"ip addr add 10.9.0.{number}/24 dev eth0; ip link set eth0 up")
            guests.append(guest)
        guests[0].run("until ping -c 1 -W 1 10.9.0.2; do :; done")
        assert " 0% packet loss" in guests[0].run("ping -c 3 10.9.0.2")
        for sender, receiver, address in ((0, 1, "10.9.0.2"), (1, 0, "10.9.0.1")):
            guests[receiver].run("(nc -l -p 5001 | sha1sum > /tmp/sum) & sleep 1")
            sent = guests[sender].run(
                "dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>&-; sha1sum < /tmp/data"
            )
            guests[sender].run(f"nc -w 5 {address} 5001 < /tmp/data")
            assert guests[receiver].run("wait; cat /tmp/sum") == sent
