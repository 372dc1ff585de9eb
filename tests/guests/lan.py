"""A LAN of two network namespaces: this host's end, where machines run, and a neighbour with services.

Nothing leaves it. The neighbour has a TCP server on port 80 that says hello and repeats what it hears, and
dnsmasq as a resolver.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

HOST = "192.0.2.1"
NEIGHBOUR = "192.0.2.2"
OTHER = "192.0.2.3"
"""A second address of the neighbour."""
NEIGHBOUR_V6 = "2001:db8::2"

_SERVER = """
import socket, threading
def serve(connection):
    with connection:
        connection.sendall(b"hello\\n")
        while data := connection.recv(65536):
            connection.sendall(data)
listener = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
_DNSMASQ = (
    *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"),
    *("--bind-interfaces", f"--listen-address={NEIGHBOUR}", "--user=root", "--pid-file="),
    *(f"--address=/allowed.test/{NEIGHBOUR}", f"--address=/other.test/{OTHER}"),
)


class Lan:
    """The two namespaces, by name."""

    def __init__(self) -> None:
        self.host = f"sublet{os.getpid()}h"
        self.neighbour = f"sublet{os.getpid()}n"

    def on_host(self, *command: str) -> list[str]:
        """A command that runs where machines run."""
        return ["ip", "netns", "exec", self.host, *command]

    def sublet_run(self) -> list[str]:
        """``sublet run`` there."""
        return self.on_host(sys.executable, "-m", "sublet", "run")

    def connect_from_host(self, port: int) -> str:
        """Everything that a port of the host's loopback says before it ends."""
        code = (
            "import socket, sys; c = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 20); "
            "print(c.makefile().read(), end='')"
        )
        result = subprocess.run(
            self.on_host(sys.executable, "-c", code, str(port)), capture_output=True, text=True, timeout=60
        )
        return result.stdout


def require_namespaces() -> None:
    """Skip where this host lets us make no network, or has no resolver to ask."""
    if os.geteuid() != 0:
        pytest.skip("only root can make network namespaces")
    for tool in ("ip", "dnsmasq"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    name = f"sublet{os.getpid()}t"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True)
    if made.returncode != 0:
        pytest.skip("this host lets nobody make network namespaces")
    _ip("netns", "del", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def _process(command: Sequence[str], *, ready: bool) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        if ready:
            assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def lan() -> Iterator[Lan]:
    """Make the LAN; it is gone afterwards."""
    require_namespaces()
    it = Lan()
    with ExitStack() as stack:
        for name in (it.host, it.neighbour):
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", it.host, "link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", it.neighbour)
        addresses = {it.host: [HOST, "2001:db8::1"], it.neighbour: [NEIGHBOUR, OTHER, NEIGHBOUR_V6]}
        for name, each in addresses.items():
            for address in each:
                size, flags = (64, ["nodad"]) if ":" in address else (24, [])
                _ip("-n", name, "address", "add", f"{address}/{size}", "dev", "lan", *flags)
            _ip("-n", name, "link", "set", "lan", "up")
        inside = ["ip", "netns", "exec", it.neighbour]
        stack.enter_context(_process([*inside, sys.executable, "-c", _SERVER], ready=True))
        stack.enter_context(_process([*inside, *_DNSMASQ], ready=False))
        yield it
