"""What ``sublet net setup`` makes, in a network namespace of its own. As root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.guests.lan import require_namespaces

pytestmark = pytest.mark.guest

Run = Callable[..., subprocess.CompletedProcess[str]]
_SUBLET = (sys.executable, "-m", "sublet", "net", "setup")
_OPEN_AS_NOBODY = """
import os, sys
from sublet.net.tap.device import TUN_DEVICE, set_up
descriptor = os.open(TUN_DEVICE, os.O_RDWR)  # here perhaps only root may
os.setgid(65534); os.setuid(int(sys.argv[1]))
set_up(descriptor, "tap0", multi_queue=False)
print("opened")
"""


@pytest.fixture
def inside() -> Iterator[Run]:
    """Runs commands in the namespace."""
    require_namespaces()
    name = f"sublet{os.getpid()}s"
    subprocess.run(["ip", "netns", "add", name], check=True)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["ip", "netns", "exec", name, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    yield run
    subprocess.run(["ip", "netns", "del", name], check=True)


def interfaces(run: Run) -> dict[str, dict[str, Any]]:
    """Those of the namespace, by name, but for the loopback."""
    rows = json.loads(run("ip", "-d", "-j", "address").stdout)
    return {row["ifname"]: row for row in rows if row["ifname"] != "lo"}


def test_a_device_with_a_bridge_of_its_own_is_the_users_and_goes_again(inside: Run) -> None:
    made = inside(*_SUBLET, "tap0", "--user", "nobody")
    assert made.returncode == 0, made.stderr
    assert "sublet net setup tap0 --undo" in made.stdout
    found = interfaces(inside)
    assert found["tap0"]["master"] == "tap0br"
    assert found["tap0"]["linkinfo"]["info_data"]["user"] in ("nobody", 65534)
    assert found["tap0br"]["addr_info"][0]["local"] == "192.168.88.1"
    assert inside(sys.executable, "-c", _OPEN_AS_NOBODY, "65534").stdout == "opened\n"
    assert "Operation not permitted" in inside(sys.executable, "-c", _OPEN_AS_NOBODY, "65533").stderr
    assert inside(*_SUBLET, "tap0", "--undo").returncode == 0
    assert interfaces(inside) == {}
    assert inside(*_SUBLET, "tap0", "--undo").stdout == "there is no tap0\n"


def test_a_bridge_that_is_there_is_used_and_left(inside: Run) -> None:
    inside("ip", "link", "add", "br0", "type", "bridge")
    assert inside(*_SUBLET, "tap0", "--user", "nobody", "--bridge", "br0", "--queues", "2").returncode == 0
    assert interfaces(inside)["tap0"]["master"] == "br0"
    assert inside(*_SUBLET, "tap0", "--undo").returncode == 0
    assert list(interfaces(inside)) == ["br0"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["tap0", "--user", "no-such-user"], "no user"),
        (["tap0", "--user", "nobody", "--bridge", "lo"], "no bridge"),
        (["tap0", "--user", "nobody", "--bridge", "br9"], "no interface"),
        (["a/b", "--user", "nobody"], "no name"),
        (["tap0", "--user", "nobody", "--address", "x"], "no address"),
        (["lo", "--undo"], "no TAP device"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(inside: Run, words: list[str], complaint: str) -> None:
    refused = inside(*_SUBLET, *words)
    assert refused.returncode != 0
    assert complaint in refused.stderr
    assert interfaces(inside) == {}
