"""Which frames a driver wants: addresses, modes and VLANs.

Until the driver says anything it gets every frame, as from a card in promiscuous mode.

Reference: virtio 1.2 §5.1.6.5.1 to §5.1.6.5.3.
"""

from __future__ import annotations

import struct
from typing import Any, Final

MAX_TABLE: Final = 64
"""Addresses of a kind; with more, every frame of that kind is wanted, as §5.1.6.5.2.1 allows."""
_ETHERTYPE_VLAN: Final = b"\x81\x00"
_BROADCAST: Final = b"\xff" * 6
_MODES: Final = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast", "no_broadcast")


class ReceiveFilter:
    """The filter's state. A command changes it and says whether it was legal."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Everything is wanted."""
        self._modes = dict.fromkeys(_MODES, False)
        self._modes["promiscuous"] = True
        self._unicast: frozenset[bytes] = frozenset()
        self._multicast: frozenset[bytes] = frozenset()
        self._vlans: set[int] = set()
        self.filters_vlans = False
        """Whether CTRL_VLAN was negotiated."""

    def set_mode(self, command: int, data: bytes) -> bool:
        """One of the VIRTIO_NET_CTRL_RX commands, which are numbered as the modes are."""
        if command >= len(_MODES) or len(data) != 1:
            return False
        self._modes[_MODES[command]] = data != b"\0"
        return True

    def set_table(self, data: bytes) -> bool:
        """VIRTIO_NET_CTRL_MAC_TABLE_SET: two tables, unicast and multicast addresses."""
        unicast, rest = _take_table(data)
        multicast, rest = _take_table(rest)
        if unicast is None or multicast is None or rest:
            return False
        self._modes["all_unicast"] = self._modes["all_unicast"] or len(unicast) > MAX_TABLE
        self._modes["all_multicast"] = self._modes["all_multicast"] or len(multicast) > MAX_TABLE
        self._unicast = frozenset(unicast[:MAX_TABLE])
        self._multicast = frozenset(multicast[:MAX_TABLE])
        return True

    def set_vlan(self, command: int, data: bytes) -> bool:
        """VIRTIO_NET_CTRL_VLAN_ADD or _DEL of one VLAN."""
        if command > 1 or len(data) != 2:
            return False
        vlan = int.from_bytes(data, "little")
        if vlan > 0xFFF:
            return False
        (self._vlans.discard if command else self._vlans.add)(vlan)
        return True

    def wants(self, frame: bytes | memoryview, mac: bytes) -> bool:
        """Whether the driver of a card with address ``mac`` is to see a frame."""
        if self.filters_vlans and frame[12:14] == _ETHERTYPE_VLAN and not self._wants_vlan(frame):
            return False
        modes = self._modes
        if modes["promiscuous"]:
            return True
        destination = bytes(frame[:6])
        if not destination[0] & 1:
            return not modes["no_unicast"] and self._wants_unicast(destination, mac)
        if destination == _BROADCAST:
            return not modes["no_broadcast"]
        return not modes["no_multicast"] and (modes["all_multicast"] or destination in self._multicast)

    def _wants_unicast(self, destination: bytes, mac: bytes) -> bool:
        return destination == mac or self._modes["all_unicast"] or destination in self._unicast

    @property
    def wants_own(self) -> bool:
        """Whether a frame to the card's own address is wanted whatever else it has."""
        return not self.filters_vlans and not self._modes["no_unicast"]

    def _wants_vlan(self, frame: bytes | memoryview) -> bool:
        return int.from_bytes(frame[14:16], "big") & 0xFFF in self._vlans

    def save_state(self) -> dict[str, Any]:
        """Modes and tables."""
        return {
            "modes": dict(self._modes),
            "unicast": sorted(self._unicast),
            "multicast": sorted(self._multicast),
            "vlans": sorted(self._vlans),
            "filters_vlans": self.filters_vlans,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self._modes = dict(state["modes"])
        self._unicast = frozenset(state["unicast"])
        self._multicast = frozenset(state["multicast"])
        self._vlans = set(state["vlans"])
        self.filters_vlans = state["filters_vlans"]


def _take_table(data: bytes) -> tuple[list[bytes] | None, bytes]:
    """A ``struct virtio_net_ctrl_mac`` and what follows it; None when it is cut short."""
    if len(data) < 4:
        return None, b""
    (count,) = struct.unpack_from("<I", data)
    end = 4 + 6 * count
    if end > len(data):
        return None, b""
    return [data[start : start + 6] for start in range(4, end, 6)], data[end:]
