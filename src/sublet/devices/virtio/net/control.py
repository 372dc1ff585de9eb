"""The control queue's commands.

Each is a class, a command, its data, and one byte for the device's answer. What is not known, too long,
or of another size than the command's is answered with VIRTIO_NET_ERR.

Reference: virtio 1.2 §5.1.6.5 "Control Virtqueue".
"""

from __future__ import annotations

from typing import Final, Protocol

from sublet.devices.virtio.net import config as c
from sublet.devices.virtio.net.filter import ReceiveFilter

MAX_COMMAND_SIZE: Final = 65536
"""Bytes; the longest is a table of addresses."""


class Controlled(Protocol):
    """What the commands act on, beside the filter."""

    filter: ReceiveFilter

    def set_address(self, mac: bytes) -> bool: ...
    def set_pairs(self, count: int) -> bool: ...
    def choose_offloads(self, features: int) -> bool: ...
    def acknowledge_announcement(self) -> bool: ...


def execute(device: Controlled, command: bytes) -> bytes:
    """Carry out one command of at least two bytes; returns the answer, one byte."""
    if len(command) < 2:
        return c.CTRL_ERROR
    kind, number, data = command[0], command[1], command[2:]
    return c.CTRL_OK if _dispatch(device, kind, number, data) else c.CTRL_ERROR


def _dispatch(device: Controlled, kind: int, number: int, data: bytes) -> bool:
    if kind == c.CTRL_RX:
        return device.filter.set_mode(number, data)
    if kind == c.CTRL_MAC:
        return _set_addresses(device, number, data)
    if kind == c.CTRL_VLAN:
        return device.filter.set_vlan(number, data)
    if kind == c.CTRL_ANNOUNCE:
        return number == 0 and device.acknowledge_announcement()
    if kind == c.CTRL_MQ:
        return number == 0 and len(data) == 2 and device.set_pairs(int.from_bytes(data, "little"))
    if kind == c.CTRL_OFFLOADS:
        return number == 0 and len(data) == 8 and device.choose_offloads(int.from_bytes(data, "little"))
    return False


def _set_addresses(device: Controlled, number: int, data: bytes) -> bool:
    if number == 0:
        return device.filter.set_table(data)
    return number == 1 and len(data) == 6 and device.set_address(data)
