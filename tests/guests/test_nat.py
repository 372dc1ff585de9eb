"""NAT as a real guest sees it, on a LAN of network namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.guests import lan as lan_module
from tests.guests.conftest import StartGuest
from tests.guests.debian import log_in, sublet_flags
from tests.guests.lan import HOST, NEIGHBOUR, NEIGHBOUR_V6, OTHER, Lan
from tests.integration.guest import Guest
from tests.integration.test_boot import PROMPT

from sublet.guest import PreparedGuest, prepare_guest, silent

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]
GATEWAY = "10.0.2.2"
_SERVICE = (
    "import socket, time; service = socket.create_server(('::', 7777), family=socket.AF_INET6, "
    "dualstack_ipv6=True); print('ready', flush=True); time.sleep(600)"
)


@pytest.fixture
def lan() -> Iterator[Lan]:
    with lan_module.lan() as it:
        yield it


def boot(start_guest: StartGuest, default_guest: PreparedGuest, lan: Lan, options: str, *more: str) -> Guest:
    """The default guest with an address, an IPv6 route, and a silent shell."""
    words = (*sublet_flags(default_guest), "--engine", "translate", "--net", f"nat,{options}", *more)
    guest = start_guest(*words, command=lan.sublet_run())
    guest.expect(PROMPT)
    guest.run("until ip route | grep -q default && ip -6 route | grep -q default; do sleep 1; done")
    # An address that is still being checked is no source: the first packet would leave with a link's.
    guest.run("until ip -6 addr | grep -q 'scope global'; do sleep 1; done")
    guest.run("while ip -6 addr | grep -q tentative; do sleep 1; done")
    return guest


def says_hello(guest: Guest, address: str, port: int = 80) -> bool:
    """Whether a server answers. What is refused is refused at once: ten seconds are a hang."""
    said = guest.run(f"(sleep 1; echo again) | timeout 10 nc {address} {port}; echo status $?")
    assert "status 143" not in said, guest.report(f"{address} neither answers nor refuses")
    return "hello" in said and "again" in said


def test_a_guest_reaches_others_and_not_the_host(
    start_guest: StartGuest, default_guest: PreparedGuest, lan: Lan
) -> None:
    service = subprocess.Popen(lan.on_host(sys.executable, "-c", _SERVICE), stdout=subprocess.PIPE)
    try:
        assert service.stdout is not None
        assert service.stdout.readline() == b"ready\n"
        guest = boot(start_guest, default_guest, lan, f"resolver={NEIGHBOUR},forward=8080-:8000")
        assert says_hello(guest, NEIGHBOUR)
        assert says_hello(guest, NEIGHBOUR_V6)
        assert not says_hello(guest, NEIGHBOUR, 81)
        for address in (GATEWAY, HOST, "0.0.0.1", "2001:db8::1", "::ffff:192.0.2.1"):
            assert "refused" in guest.run(f"timeout 10 nc {address} 7777 2>&1 < /dev/null; true"), address
        assert NEIGHBOUR in guest.run("nslookup -type=a allowed.test")
        guest.run("(echo from the guest | nc -l -p 8000) > /dev/null 2>&1 & true")
        assert lan.connect_from_host(8080) == "from the guest\n"
    finally:
        service.kill()
        service.wait()
        if service.stdout is not None:
            service.stdout.close()


def test_a_policy_by_name_has_no_way_round(
    start_guest: StartGuest, default_guest: PreparedGuest, lan: Lan
) -> None:
    policy = f"resolver={NEIGHBOUR},allow=allowed.test:80,deny=*"
    name = f"policy-{os.getpid()}"
    guest = boot(start_guest, default_guest, lan, policy, "--name", name)
    assert not says_hello(guest, NEIGHBOUR)
    assert NEIGHBOUR in guest.run("nslookup -type=a allowed.test")
    assert says_hello(guest, NEIGHBOUR)
    assert not says_hello(guest, OTHER)
    assert not says_hello(guest, NEIGHBOUR_V6)
    assert OTHER not in guest.run("nslookup -type=a other.test 2>&1; true")
    assert OTHER not in guest.run(f"timeout 20 nslookup -type=a other.test {NEIGHBOUR} 2>&1; true")
    assert "100% packet loss" in guest.run(f"ping -c 1 -W 3 {NEIGHBOUR}; true")
    refused = {(row["protocol"], row["target"], row["port"]) for row in net(name, "denials")}
    assert {("tcp", NEIGHBOUR, 80), ("tcp", OTHER, 80), ("tcp", NEIGHBOUR_V6, 80)} <= refused
    assert any(target == "other.test" for _, target, _ in refused)
    (counters,) = net(name, "stats")
    assert counters["denied"] >= len(refused)


def net(machine: str, verb: str) -> list[dict[str, Any]]:
    """What ``sublet net`` says of a machine."""
    words = [sys.executable, "-m", "sublet", "net", verb, machine, "--json"]
    said = subprocess.run(words, capture_output=True, check=True, timeout=60).stdout
    return list(json.loads(said))


def test_debian_configures_itself(start_guest: StartGuest, lan: Lan) -> None:
    words = (*sublet_flags(prepare_guest("debian", silent)), "--engine", "translate")
    guest = log_in(start_guest(*words, "--net", f"nat,resolver={NEIGHBOUR}", command=lan.sublet_run()))
    guest.run("until grep -q nameserver /etc/resolv.conf; do sleep 1; done")
    assert NEIGHBOUR in guest.run("getent ahostsv4 allowed.test")
    hello = 'exec 3<>/dev/tcp/allowed.test/80; read -r line <&3; echo "$line"'
    assert "hello" in guest.run(f"bash -c '{hello}'")
