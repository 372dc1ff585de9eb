"""A TAP or macvtap device, opened with virtio headers: its packets are ours as they are.

Reference: Linux 6.1 Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sublet.errors import HostRefused
from sublet.net.packet import ALL_OFFLOADS, HEADER_SIZE, MAX_PACKET_SIZE, Offload
from sublet.net.polled_sink import RECEIVE_BATCH, PolledSink

TUN_DEVICE: Final = Path("/dev/net/tun")
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_IFF_TAP: Final = 0x0002
_IFF_MULTI_QUEUE: Final = 0x0100
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_IFREQ: Final = struct.Struct("16sH22x")
_USO: Final = Offload.USO4 | Offload.USO6
_SOURCE: Final = slice(HEADER_SIZE + 6, HEADER_SIZE + 12)
_NOT_NOW: Final = (errno.EIO, errno.ENETDOWN, errno.ENOBUFS)


def create_tap(pattern: str, queues: int) -> tuple[str, list[int]]:
    """Open a TAP device, which is made if there is none of that name and goes when it is closed.

    Args:
        pattern: Its name; ``%d`` in it is a number of the kernel's choice.
        queues: How many descriptors.

    Returns:
        Its name, and a non-blocking descriptor for each queue.

    Raises:
        OSError: No right, in use, or the kernel has no TAP devices.
    """
    descriptors: list[int] = []
    name = pattern
    try:
        for _ in range(queues):
            descriptor = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            descriptors.append(descriptor)
            name = set_up(descriptor, name, multi_queue=queues > 1)
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return name, descriptors


def set_up(descriptor: int, name: str, *, multi_queue: bool) -> str:
    """Attach a descriptor to the device ``name``, with 12-byte headers; returns the device's name."""
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if multi_queue else 0)
    answer = fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, struct.pack("i", HEADER_SIZE))
    return bytes(_IFREQ.unpack(answer)[0]).rstrip(b"\0").decode()


class TapSink(PolledSink):
    """The guest's end of a TAP device, with one descriptor or several.

    Args:
        descriptors: Non-blocking; owned from now on.
        mac: The only address that the guest may send from; None for any.
        on_release: Called once the descriptors are closed, to remove what was made for the device.
    """

    def __init__(
        self, descriptors: Sequence[int], mac: bytes | None, on_release: Callable[[], None] | None = None
    ) -> None:
        self._descriptors = list(descriptors)
        self._mac = mac
        self._on_release = on_release
        self._epoll: select.epoll | None = None
        self._knows_uso = self._tell_offloads(Offload.CHECKSUM | _USO)
        self._tell_offloads(Offload.NONE)
        super().__init__(self._pollable(), ALL_OFFLOADS if self._knows_uso else ALL_OFFLOADS & ~_USO)

    def _pollable(self) -> int:
        """One descriptor that is readable when any of them is."""
        if len(self._descriptors) == 1:
            return self._descriptors[0]
        self._epoll = select.epoll()
        for descriptor in self._descriptors:
            self._epoll.register(descriptor, select.EPOLLIN)
        return self._epoll.fileno()

    def _tell_offloads(self, offloads: Offload) -> bool:
        try:
            for descriptor in self._descriptors:
                fcntl.ioctl(descriptor, _TUNSETOFFLOAD, int(offloads))
        except OSError:
            return False
        return True

    def set_guest_offloads(self, offloads: Offload) -> None:
        """Told to the kernel, which does the rest itself."""
        self._tell_offloads(offloads if self._knows_uso else offloads & ~_USO)

    def read_packets(self) -> list[bytes]:
        """As many as there are, up to a batch."""
        packets: list[bytes] = []
        for descriptor in self._descriptors:
            try:
                while len(packets) < RECEIVE_BATCH:
                    packets.append(os.read(descriptor, MAX_PACKET_SIZE))
            except BlockingIOError:
                continue
        return packets

    def write_packets(self, packets: Sequence[bytes]) -> int:
        """One system call each; what the kernel refuses is dropped."""
        for index, packet in enumerate(packets):
            if self._mac is not None and packet[_SOURCE] != self._mac:
                self.counters["dropped.spoofed"] += 1
                continue
            try:
                os.write(self._descriptors[self._queue_of(packet)], packet)
            except BlockingIOError:
                return index
            except OSError as error:
                if error.errno not in (*_NOT_NOW, errno.EINVAL):
                    raise
                self.counters["dropped.refused_by_host"] += 1
        return len(packets)

    def _queue_of(self, packet: bytes) -> int:
        """The same for every packet of a flow: the kernel sends its answers where it came from."""
        if len(self._descriptors) == 1:
            return 0
        return sum(packet[HEADER_SIZE + 26 : HEADER_SIZE + 38]) % len(self._descriptors)

    def release(self) -> None:
        """Close the descriptors; the device vanishes, unless it is to persist."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        if self._epoll is not None:
            self._epoll.close()
        if self._on_release is not None:
            self._on_release()


_RIGHT: Final = "Run as root, or let an administrator make a device for you: docs/guide/networks.md."
_NO_TAP: Final = "The kernel has no TAP devices here: load the module tun, or allow /dev/net/tun."
_REMEDIES: Final = {
    errno.EPERM: _RIGHT,
    errno.EACCES: _RIGHT,
    errno.ENOENT: _NO_TAP,
    errno.ENODEV: _NO_TAP,
    errno.EBUSY: "Another machine uses it.",
    errno.EINVAL: "It is no TAP device with as many queues and virtio headers.",
}


def refused(action: str, error: OSError) -> HostRefused:
    """The error that the kernel would not, with what to do about it."""
    return HostRefused(
        f"cannot {action}: {error.strerror or error}", remedy=_REMEDIES.get(error.errno or 0, "")
    )
