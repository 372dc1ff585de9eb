"""What an administrator prepares once, so that a user without privileges has a network of the host's kernel.

The device is a TAP device that stays when nobody has it open and that only its owner may open. Nothing else
of the user's needs a right. It goes with ``remove``, or when the host restarts.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import pwd
import re
from dataclasses import dataclass
from typing import Final

from sublet.errors import HostRefused, UsageError
from sublet.net.tap.device import TUN_DEVICE, create_tap, refused
from sublet.net.tap.links import Links, links

_TUNSETPERSIST: Final = 0x400454CB
_TUNSETOWNER: Final = 0x400454CC
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_BRIDGE_OF: Final = "{}br"
_MOST_DEVICE: Final = 13
"""Characters of a device that has a bridge of its own, whose name is two longer."""


@dataclass(frozen=True)
class Plan:
    """A device for a user.

    Args:
        device: The TAP device's name.
        user: Its owner.
        bridge: A bridge that is there already, to plug the device into.
        address: Without ``bridge``: the host's address on a bridge of the device's own.
        queues: As many as the user may ask for; the machine has to ask for as many.
    """

    device: str
    user: str
    bridge: str | None = None
    address: ipaddress.IPv4Interface | None = None
    queues: int = 1


def set_up_device(plan: Plan) -> list[str]:
    """Make a device, plug it in, and give it to its owner; what was done, a sentence each.

    Raises:
        UsageError: There is no such user or bridge, or the name is taken or none.
        HostRefused: No right, or the kernel has no TAP devices.
    """
    owner = _user(plan.user)
    own_bridge = _BRIDGE_OF.format(plan.device) if plan.bridge is None else None
    _check_name(plan.device, _MOST_DEVICE if own_bridge else 15)
    with links(f"set up {plan.device}") as found:
        for name in filter(None, (plan.device, own_bridge)):
            if found.find(name) is not None:
                raise UsageError(f"there is an interface {name!r} already", remedy="Give another name.")
        bridge = _find_bridge(found, plan.bridge) if plan.bridge is not None else None
        if bridge is None:
            _check_free(found, plan.address)
        _make_device(plan, owner)
        done = [f"made the TAP device {plan.device}, which {plan.user} may open"]
        try:
            done += _plug_in(found, plan, bridge, own_bridge)
        except BaseException:
            _remove(found, plan.device)
            raise
    return done + _hindrances()


def remove_device(device: str) -> list[str]:
    """Undo ``set_up_device``, twice as well as once; what was done.

    Raises:
        UsageError: It is no device that ``set_up_device`` made.
        HostRefused: No right.
    """
    with links(f"remove {device}") as found:
        index = found.find(device)
        if index is not None and found.kind(index) != "tun":
            raise UsageError(f"{device!r} is no TAP device")
        return [f"removed {name}" for name in _remove(found, device)]


def _remove(found: Links, device: str) -> list[str]:
    removed = []
    bridge = found.find(_BRIDGE_OF.format(device))
    device_index = found.find(device)
    if device_index is not None:
        found.remove(device_index)
        removed.append(device)
    if bridge is not None and found.kind(bridge) == "bridge" and not found.ports(bridge):
        found.remove(bridge)
        removed.append(_BRIDGE_OF.format(device))
    return removed


def _hindrances() -> list[str]:
    """What else keeps the owner from the device; most systems let everybody open the node."""
    if os.stat(TUN_DEVICE).st_mode & 0o006 == 0o006:
        return []
    return [f"but {TUN_DEVICE} is not open to everybody here: chmod 666 {TUN_DEVICE}, as udev does elsewhere"]


def _user(name: str) -> int:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise UsageError(f"there is no user {name!r}") from None


def _check_name(name: str, most: int) -> None:
    if not _NAME.fullmatch(name) or len(name) > most:
        raise UsageError(
            f"{name!r} is no name for a device",
            remedy=f"Use 1 to {most} letters, digits, '_', '.' and '-', beginning with a letter or digit.",
        )


def _find_bridge(found: Links, name: str) -> int:
    index = found.find(name)
    if index is None:
        raise UsageError(f"there is no interface {name!r}", remedy="ip link lists them.")
    if found.kind(index) != "bridge":
        raise UsageError(
            f"{name!r} is no bridge",
            remedy=f"Make one, move {name} and its address to it, and give that: docs/guide/networks.md.",
        )
    return index


def _check_free(found: Links, address: ipaddress.IPv4Interface | None) -> None:
    for network, _ in found.networks():
        if address is not None and network.overlaps(address.network):
            raise UsageError(f"the host has the network {network} already", remedy="Give another address.")


def _make_device(plan: Plan, owner: int) -> None:
    try:
        _, descriptors = create_tap(plan.device, plan.queues)
    except OSError as error:
        raise refused(f"make the TAP device {plan.device}", error) from error
    try:
        fcntl.ioctl(descriptors[0], _TUNSETOWNER, owner)
        fcntl.ioctl(descriptors[0], _TUNSETPERSIST, 1)
    except OSError as error:
        raise HostRefused(f"cannot keep the TAP device {plan.device}: {error.strerror}") from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _plug_in(found: Links, plan: Plan, bridge: int | None, own_bridge: str | None) -> list[str]:
    port = found.find(plan.device)
    assert port is not None, "just made"
    if bridge is not None:
        found.add_port(bridge, port)
        return [f"plugged it into {plan.bridge}"]
    assert own_bridge is not None, "one or the other"
    assert plan.address is not None, "one or the other"
    found.add_port(found.add_bridge(own_bridge, plan.address), port)
    return [f"plugged it into a new bridge {own_bridge}, where this host has {plan.address}"]
