"""Addresses of a host-only network by Ethernet address, in a file that its machines share.

The file outlives the machines, so that a machine finds its address again. It is a JSON object: the
network, and for each Ethernet address an IPv4 address with the nanosecond of CLOCK_BOOTTIME when it ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

MAX_LEASES: Final = 1024
_MAX_FILE: Final = 1 << 18
_DECLINED: Final = b"\1\0"
"""Begins the key of an address that somebody uses without a lease; no machine's address begins so."""
_NS: Final = 10**9


@dataclass(frozen=True)
class Lease:
    """An address that a machine has until ``ends_ns``."""

    address: ipaddress.IPv4Address
    ends_ns: int


class LeaseFile:
    """The leases of one network. Calls are short, and safe from any thread or process.

    Args:
        path: Made when first needed; what is in it and not understood is forgotten.
        interface: The host's address, which nobody gets, and the network.
        lease_s: Seconds that a lease lasts.
        now_ns: A clock that all machines of the host share.
    """

    def __init__(
        self, path: Path, interface: ipaddress.IPv4Interface, lease_s: int, now_ns: Callable[[], int]
    ) -> None:
        self._path, self._interface, self._now_ns = path, interface, now_ns
        self._lease_ns = lease_s * _NS

    def give(self, mac: bytes, wanted: ipaddress.IPv4Address | None) -> ipaddress.IPv4Address | None:
        """The address of a machine from now on: its own, the one it wants, or a free one.

        Returns:
            None when every address is taken.
        """
        with self._changed() as leases:
            mine = leases.pop(mac, None)
            taken = {lease.address for lease in leases.values()}
            address = mine.address if mine is not None else self._choose(mac, wanted, taken)
            if address is None or len(leases) >= MAX_LEASES:
                return None
            leases[mac] = Lease(address, self._now_ns() + self._lease_ns)
            return address

    def _choose(
        self, mac: bytes, wanted: ipaddress.IPv4Address | None, taken: set[ipaddress.IPv4Address]
    ) -> ipaddress.IPv4Address | None:
        if wanted is not None and wanted not in taken and self._is_for_machines(wanted):
            return wanted
        network = self._interface.network
        hosts = min(network.num_addresses - 2, 2 * MAX_LEASES)
        start = int.from_bytes(hashlib.blake2s(mac, digest_size=4).digest(), "big")
        for step in range(hosts):
            address = network.network_address + 1 + (start + step) % hosts
            if address not in taken and self._is_for_machines(address):
                return address
        return None

    def _is_for_machines(self, address: ipaddress.IPv4Address) -> bool:
        network = self._interface.network
        none = (self._interface.ip, network.network_address, network.broadcast_address)
        return address in network and address not in none

    def release(self, mac: bytes) -> None:
        """Forget a machine's address. Idempotent."""
        with self._changed() as leases:
            leases.pop(mac, None)

    def decline(self, mac: bytes, address: ipaddress.IPv4Address) -> None:
        """A machine says that somebody else uses the address that it was given: nobody gets it for a while.

        Reference: RFC 2131 §4.3.3 "DHCPDECLINE message".
        """
        with self._changed() as leases:
            lease = leases.get(mac)
            if lease is not None and lease.address == address:
                del leases[mac]
                leases[_DECLINED + address.packed] = Lease(address, self._now_ns() + self._lease_ns)

    def rows(self) -> list[dict[str, Any]]:
        """For ``sublet net leases``."""
        with self._changed() as leases:
            return [
                {
                    "mac": mac.hex(":"),
                    "address": str(lease.address),
                    "seconds_left": (lease.ends_ns - self._now_ns()) // _NS,
                }
                for mac, lease in leases.items()
                if not mac.startswith(_DECLINED)
            ]

    @contextmanager
    def _changed(self) -> Iterator[dict[bytes, Lease]]:
        """What is in the file, under its lock; written back at the end."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            before = os.pread(descriptor, _MAX_FILE, 0)
            leases = self._parse(before)
            yield leases
            after = self._format(leases)
            if after != before:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, after, 0)
        finally:
            os.close(descriptor)

    def _format(self, leases: dict[bytes, Lease]) -> bytes:
        rows = {mac.hex(): [str(lease.address), lease.ends_ns] for mac, lease in leases.items()}
        return json.dumps({"network": str(self._interface.network), "leases": rows}).encode()

    def _parse(self, text: bytes) -> dict[bytes, Lease]:
        """Leases that have not ended; none if the file is of another network."""
        now = self._now_ns()
        try:
            content = json.loads(text)
            if content["network"] != str(self._interface.network):
                return {}
            rows = {
                bytes.fromhex(mac): Lease(ipaddress.IPv4Address(address), int(ends_ns))
                for mac, (address, ends_ns) in content["leases"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}
        # A later end than any given since the host started is from before that.
        live = (now, now + self._lease_ns)
        return {mac: lease for mac, lease in rows.items() if live[0] < lease.ends_ns <= live[1]}
