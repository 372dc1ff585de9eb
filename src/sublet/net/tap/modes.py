"""The kinds ``tap``, ``bridged`` and ``hostonly``.

What is left behind when a machine is killed: TAP devices vanish with their descriptors. A macvtap has its
process's number in its name, and a bridge of ours has no ports then; the next machine that starts or ends
in one of these modes removes both.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import ipaddress
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from sublet.errors import HostRefused, UsageError
from sublet.net.kinds import Nic
from sublet.net.options import NetOptions
from sublet.net.sink import PacketSink
from sublet.net.switch.rendezvous import check_network_name
from sublet.net.tap.claim import claim_address
from sublet.net.tap.device import TapSink, create_tap, refused, set_up
from sublet.net.tap.dhcp import LEASE_S, Server
from sublet.net.tap.hostonly import HostOnlySink
from sublet.net.tap.leases import LeaseFile
from sublet.net.tap.links import Links, links

TAP_PATTERN: Final = "sublet%d"
_BRIDGE_PREFIX: Final = "slh-"
_MACVTAP_PREFIX: Final = "slm"
_MOST_NAME: Final = 15
"""Characters in an interface's name."""


def open_tap(options: NetOptions, nic: Nic) -> PacketSink:
    """A TAP device that is there already and that the user may open."""
    name = options.required("interface")
    with links(f"look for the interface {name}") as found:
        if found.find(name) is None:
            raise options.error("interface", f"{name!r} does not exist")
    try:
        # The device was made with one queue or several, which only who made it knows.
        _, descriptors = create_tap(name, options.integer("queues", 1, 1, nic.queues))
    except OSError as error:
        raise refused(f"open the TAP device {name}", error) from error
    return TapSink(descriptors, _allowed_mac(options, nic))


def open_bridged(options: NetOptions, nic: Nic) -> PacketSink:
    """A neighbour on the LAN: a port of a bridge, or a macvtap on any other interface."""
    name = options.required("interface")
    with links(f"join the network of {name}") as found:
        index = found.find(name)
        if index is None:
            raise options.error("interface", f"{name!r} does not exist")
        if (limit := found.mtu(index)) < nic.mtu:
            raise options.error("mtu", f"{nic.mtu} is more than {name} carries: give mtu={limit}")
        if found.mac(index) == nic.mac:
            raise options.error("mac", f"{nic.mac.hex(':')} is that of {name}")
        with _guard(nic):
            _sweep(found)
            if found.kind(index) == "bridge":
                return _on_bridge(found, index, options, nic)
            return _on_macvtap(found, index, options, nic)


def open_hostonly(options: NetOptions, nic: Nic) -> PacketSink:
    """A bridge of the host's own with nothing else on it; made by the first machine, gone with the last."""
    name = check_network_name(options.get("name") or "default")
    address = _host_address(options, name)
    with links(f"make the host-only network {name}") as found, _guard(nic):
        _sweep(found)
        bridge_name = _bridge_name(name)
        bridge = found.find(bridge_name)
        if bridge is None:
            _check_free(found, options, address)
            bridge = found.add_bridge(bridge_name, address)
        host = found.address(bridge) or address
        claim = _claim(bridge, bridge_name, nic)
        descriptors = _plug_in(found, bridge, nic, claim)
        server = Server(host, found.mac(bridge))
        path = nic.directory() / f"hostonly-{name}-{_namespace()}.leases"
        leases = LeaseFile(path, host, LEASE_S, partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME))
        mac = _allowed_mac(options, nic)
        if not options.flag("dhcp", default=True):
            return TapSink(descriptors, mac, lambda: _clean_up(nic, claim))
        return HostOnlySink(descriptors, mac, server, leases, lambda: _clean_up(nic, claim))


def _on_bridge(found: Links, bridge: int, options: NetOptions, nic: Nic) -> TapSink:
    claim = _claim(bridge, options.required("interface"), nic)
    descriptors = _plug_in(found, bridge, nic, claim)
    return TapSink(descriptors, _allowed_mac(options, nic), lambda: _clean_up(nic, claim))


def _claim(bridge: int, name: str, nic: Nic) -> int:
    """The card's address on a bridge, until the descriptor is closed."""
    return claim_address(nic.directory() / f"addresses-{bridge}-{_namespace()}", nic.mac, name)


def _namespace() -> int:
    """The network namespace: one user's machines may be in several, and their networks are not the same."""
    return os.stat("/proc/self/ns/net").st_ino


def _plug_in(found: Links, bridge: int, nic: Nic, claim: int) -> list[int]:
    """Descriptors of a new TAP device that is a port of the bridge; lets go of the claim if it fails."""
    descriptors: list[int] = []
    try:
        name, descriptors = create_tap(TAP_PATTERN, nic.queues)
        port = found.find(name)
        assert port is not None, "just made"
        found.add_port(bridge, port)
    except BaseException:
        for descriptor in (*descriptors, claim):
            os.close(descriptor)
        raise
    return descriptors


def _on_macvtap(found: Links, interface: int, options: NetOptions, nic: Nic) -> TapSink:
    found.set_up(interface)
    name = f"{_MACVTAP_PREFIX}{os.getpid()}n{nic.name.removeprefix('net')}"
    index = found.add_macvtap(name, interface, nic.mac)
    descriptors: list[int] = []
    try:
        for _ in range(nic.queues):
            descriptors.append(_open_macvtap(name, index))
            set_up(descriptors[-1], name, multi_queue=nic.queues > 1)
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        found.remove(index)
        raise
    return TapSink(descriptors, _allowed_mac(options, nic), lambda: _remove_macvtap(nic, name))


def _open_macvtap(name: str, index: int) -> int:
    """Open ``/dev/tapN``, by a node of our own where nobody makes them (a container, say)."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
    node = Path(f"/dev/tap{index}")
    numbers = Path(f"/sys/class/net/{name}/tap{index}/dev")
    wanted = _device_number(numbers) if numbers.exists() else _device_number(_moved(name, index))
    if node.exists() and node.stat().st_rdev == wanted:
        return os.open(node, flags)
    with tempfile.TemporaryDirectory() as directory:
        own = Path(directory) / "tap"
        os.mknod(own, 0o600 | stat.S_IFCHR, wanted)
        return os.open(own, flags)


def _moved(name: str, index: int) -> Path:
    return Path(f"/sys/class/net/{name}/macvtap/tap{index}/dev")


def _device_number(path: Path) -> int:
    major, _, minor = path.read_text().strip().partition(":")
    return os.makedev(int(major), int(minor))


def _allowed_mac(options: NetOptions, nic: Nic) -> bytes | None:
    return None if options.flag("spoof") else nic.mac


def _host_address(options: NetOptions, name: str) -> ipaddress.IPv4Interface:
    """The host's address on a host-only network: the user's choice, or one that the name decides."""
    text = options.get("address")
    if text is None:
        third = 100 + hashlib.blake2s(name.encode(), digest_size=1).digest()[0] % 100
        return ipaddress.IPv4Interface(f"192.168.{third}.1/24")
    try:
        address = ipaddress.IPv4Interface(text)
    except ValueError as error:
        raise options.error("address", f"is one such as 192.168.77.1/24, not {text!r}") from error
    network = address.network
    if not 8 <= network.prefixlen <= 29 or address.ip in (network.network_address, network.broadcast_address):
        raise options.error("address", f"is a host in a network of 8 to 29 bits, not {text!r}")
    return address


def _check_free(found: Links, options: NetOptions, address: ipaddress.IPv4Interface) -> None:
    for network, _ in found.networks():
        if network.overlaps(address.network):
            raise UsageError(
                f"--net {options.text}: the host has the network {network} already",
                remedy="Give another one with address=, such as address=192.168.77.1/24.",
            )


def _bridge_name(name: str) -> str:
    plain = _BRIDGE_PREFIX + name
    if len(plain) <= _MOST_NAME:
        return plain
    return _BRIDGE_PREFIX + hashlib.blake2s(name.encode(), digest_size=5).hexdigest()


@contextmanager
def _guard(nic: Nic) -> Iterator[None]:
    """One machine at a time makes or removes interfaces."""
    descriptor = os.open(nic.directory() / "links.guard", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep(found: Links) -> None:
    """Remove what killed machines left."""
    for bridge in found.by_prefix(_BRIDGE_PREFIX).values():
        if not found.ports(bridge):
            found.remove(bridge)
    for name, index in found.by_prefix(_MACVTAP_PREFIX).items():
        owner = name.removeprefix(_MACVTAP_PREFIX).partition("n")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            found.remove(index)


def _clean_up(nic: Nic, claim: int) -> None:
    os.close(claim)
    with contextlib.suppress(HostRefused), links("remove a bridge") as found, _guard(nic):
        _sweep(found)


def _remove_macvtap(nic: Nic, name: str) -> None:
    with contextlib.suppress(HostRefused), links(f"remove {name}") as found, _guard(nic):
        index = found.find(name)
        if index is not None:
            found.remove(index)
        _sweep(found)
