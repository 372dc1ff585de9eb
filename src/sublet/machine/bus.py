"""Port and memory-mapped I/O: from an address to the device that decodes it."""

from __future__ import annotations

import threading
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass

from sublet.hw import MmioDevice, PioDevice


class BusConflict(ValueError):
    """Two devices claim the same addresses."""


class PortBus:
    """The 64 Ki I/O ports. Ports that no device decodes read as all ones; writes to them vanish.

    Built before the vCPUs run, except for I/O BARs, which the guest may move at any time: `add` and
    `remove` are safe beside `read` and `write`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # INVARIANT: port → (device, first port, end). Single dictionary operations are atomic.
        self._ports: dict[int, tuple[PioDevice, int, int]] = {}

    def add(self, first: int, length: int, device: PioDevice) -> None:
        """Let ``device`` decode ``length`` ports from ``first``.

        Raises:
            BusConflict: Another device has one of them, or they exceed 0xffff.
        """
        end = first + length
        if first < 0 or length <= 0 or end > 0x1_0000:
            raise BusConflict(f"not a range of ports: {first:#x} to {end:#x}")
        with self._lock:
            taken = [port for port in range(first, end) if port in self._ports]
            if taken:
                raise BusConflict(f"port {taken[0]:#x} is taken")
            self._ports.update(dict.fromkeys(range(first, end), (device, first, end)))

    def remove(self, first: int, length: int, device: PioDevice | None = None) -> None:
        """Stop decoding; ports that nobody had, or another than ``device`` has, are ignored."""
        with self._lock:
            for port in range(first, first + length):
                if device is None or self._ports.get(port, (None,))[0] is device:
                    self._ports.pop(port, None)

    def read(self, port: int, size: int) -> int:
        """Value of ``size`` (1, 2 or 4) bytes at ``port``."""
        entry = self._ports.get(port)
        if entry is None:
            return (1 << 8 * size) - 1
        device, first, end = entry
        if port + size > end:
            return self._read_bytes(port, size)
        return device.pio_read(port - first, size)

    def write(self, port: int, size: int, value: int) -> None:
        """Store the low ``size`` (1, 2 or 4) bytes of ``value`` at ``port``."""
        entry = self._ports.get(port)
        if entry is None:
            return
        device, first, end = entry
        if port + size > end:
            self._write_bytes(port, size, value)
        else:
            device.pio_write(port - first, size, value)

    def _read_bytes(self, port: int, size: int) -> int:
        """An access over the end of a device is a byte access to each port, as on ISA."""
        return sum(self.read(port + i & 0xFFFF, 1) << 8 * i for i in range(size))

    def _write_bytes(self, port: int, size: int, value: int) -> None:
        for i in range(size):
            self.write(port + i & 0xFFFF, 1, value >> 8 * i & 0xFF)


@dataclass(frozen=True, slots=True)
class _Region:
    start: int
    end: int
    device: MmioDevice


class MmioBus:
    """Memory-mapped regions, by guest-physical address. Undecoded reads are all ones.

    The guest moves BARs while other vCPUs access devices: the table is replaced as a whole, so that
    a reader sees the old one or the new one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._table: tuple[list[int], list[_Region]] = ([], [])

    def add(self, start: int, length: int, device: MmioDevice) -> None:
        """Let ``device`` decode ``length`` bytes from ``start``.

        Raises:
            BusConflict: The range is empty, exceeds 64 bits, or overlaps another device's.
        """
        region = _Region(start, start + length, device)
        if start < 0 or length <= 0 or region.end > 1 << 64:
            raise BusConflict(f"not an address range: {start:#x}, {length:#x} bytes")
        with self._lock:
            regions = self._table[1]
            for other in regions:
                if region.start < other.end and other.start < region.end:
                    raise BusConflict(f"{start:#x} to {region.end:#x} overlaps {other.start:#x}")
            self._replace([*regions, region])

    def remove(self, start: int, length: int, device: MmioDevice | None = None) -> None:
        """Take away the region of these bounds, if there is one and, where given, it is ``device``'s."""

        def stays(region: _Region) -> bool:
            if (region.start, region.end) != (start, start + length):
                return True
            return device is not None and region.device is not device

        with self._lock:
            self._replace([region for region in self._table[1] if stays(region)])

    def _replace(self, regions: list[_Region]) -> None:
        regions.sort(key=lambda region: region.start)
        self._table = ([region.start for region in regions], regions)

    def _find(self, address: int, size: int) -> _Region | None:
        starts, regions = self._table
        index = bisect_right(starts, address) - 1
        if index < 0:
            return None
        region = regions[index]
        return region if address + size <= region.end else None

    def read(self, address: int, size: int) -> int:
        """Value of ``size`` (1, 2, 4 or 8) bytes at ``address``."""
        region = self._find(address, size)
        if region is None:
            return (1 << 8 * size) - 1
        return region.device.mmio_read(address - region.start, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Store the low ``size`` (1, 2, 4 or 8) bytes of ``value`` at ``address``."""
        region = self._find(address, size)
        if region is not None:
            region.device.mmio_write(address - region.start, size, value)


class Buses:
    """Both address spaces of a machine, as the PCI host bridge maps BARs into them (`hw.AddressSpace`).

    The guest may place a BAR over what the board decodes itself; the board's device keeps its addresses,
    and the BAR decodes nowhere.
    """

    def __init__(self) -> None:
        self.ports = PortBus()
        self.mmio = MmioBus()

    def map_mmio(self, base: int, size: int, device: MmioDevice) -> None:
        """See `MmioBus.add`."""
        with suppress(BusConflict):
            self.mmio.add(base, size, device)

    def unmap_mmio(self, base: int, size: int, device: MmioDevice) -> None:
        """See `MmioBus.remove`."""
        self.mmio.remove(base, size, device)

    def map_pio(self, base: int, size: int, device: PioDevice) -> None:
        """See `PortBus.add`."""
        with suppress(BusConflict):
            self.ports.add(base, size, device)

    def unmap_pio(self, base: int, size: int, device: PioDevice) -> None:
        """See `PortBus.remove`."""
        self.ports.remove(base, size, device)
