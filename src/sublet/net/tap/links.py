"""The kernel's network interfaces, through netlink.

Everything here needs CAP_NET_ADMIN in the network namespace, except looking.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sublet.net.tap.device import refused


@contextmanager
def links(action: str) -> Iterator[Links]:
    """Talk to the kernel; what it refuses is raised as `HostRefused`: "cannot ``action``"."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            yield Links(route)
    except NetlinkError as error:
        raise refused(action, OSError(error.code, error.args[1] if len(error.args) > 1 else "")) from error
    except OSError as error:
        raise refused(action, error) from error


class Links:
    """Interfaces by name or index.

    Args:
        route: A ``pyroute2.IPRoute``.
    """

    def __init__(self, route: Any) -> None:
        self._route = route

    def find(self, name: str) -> int | None:
        """An interface's index."""
        found = self._route.link_lookup(ifname=name)
        return int(found[0]) if found else None

    def kind(self, index: int) -> str:
        """``bridge``, ``veth``, ...; empty for hardware."""
        information = self._attribute(index, "IFLA_LINKINFO")
        return str(information.get_attr("IFLA_INFO_KIND")) if information is not None else ""

    def _attribute(self, index: int, name: str) -> Any:
        return self._route.get_links(index)[0].get_attr(name)

    def mtu(self, index: int) -> int:
        """Bytes."""
        return int(self._attribute(index, "IFLA_MTU"))

    def mac(self, index: int) -> bytes:
        """The Ethernet address."""
        return bytes.fromhex(str(self._attribute(index, "IFLA_ADDRESS")).replace(":", ""))

    def by_prefix(self, prefix: str) -> dict[str, int]:
        """Interfaces whose names begin so: index by name."""
        names = {str(link.get_attr("IFLA_IFNAME")): int(link["index"]) for link in self._route.get_links()}
        return {name: index for name, index in names.items() if name.startswith(prefix)}

    def ports(self, bridge: int) -> int:
        """How many interfaces a bridge has."""
        return sum(link.get_attr("IFLA_MASTER") == bridge for link in self._route.get_links())

    def networks(self) -> list[tuple[ipaddress.IPv4Network, int]]:
        """Every IPv4 network that the host has an address in, and by which interface."""
        found = []
        for address in self._route.get_addr(family=2):
            text = f"{address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}"
            found.append((ipaddress.IPv4Network(text, strict=False), int(address["index"])))
        return found

    def address(self, index: int) -> ipaddress.IPv4Interface | None:
        """The first IPv4 address that the host has on an interface."""
        for address in self._route.get_addr(family=2, index=index):
            return ipaddress.IPv4Interface(f"{address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}")
        return None

    def add_bridge(self, name: str, address: ipaddress.IPv4Interface) -> int:
        """A bridge that is up, has an address of the host's, and that the host does not route from."""
        self._route.link("add", ifname=name, kind="bridge")
        index = self.find(name)
        assert index is not None, "just made"
        for family in ("ipv4", "ipv6"):
            # Where the host has no such family, or a container may not say, it does not route either way.
            with contextlib.suppress(OSError):
                Path(f"/proc/sys/net/{family}/conf/{name}/forwarding").write_text("0")
        self._route.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
        self._route.link("set", index=index, state="up")
        return index

    def add_port(self, bridge: int, port: int) -> None:
        """Plug an interface into a bridge and bring it up."""
        self._route.link("set", index=port, master=bridge, state="up")

    def add_macvtap(self, name: str, interface: int, mac: bytes) -> int:
        """A macvtap in bridge mode: a neighbour of everybody on the interface but the host itself."""
        self._route.link(
            "add", ifname=name, kind="macvtap", link=interface, macvtap_mode="bridge", address=mac.hex(":")
        )
        index = self.find(name)
        assert index is not None, "just made"
        self._route.link("set", index=index, state="up")
        return index

    def set_up(self, index: int) -> None:
        """Bring an interface up."""
        self._route.link("set", index=index, state="up")

    def remove(self, index: int) -> None:
        """Remove an interface."""
        self._route.link("del", index=index)
