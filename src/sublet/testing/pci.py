"""An address space and the guest's side of PCI configuration."""

from __future__ import annotations

from sublet.devices.pci import PciHost
from sublet.devices.pci import config_space as cs
from sublet.hw import MmioDevice, PioDevice


class FakeAddressSpace:
    """Remembers what is mapped, and refuses overlaps as a real bus may (``hw.AddressSpace``)."""

    def __init__(self) -> None:
        self.mmio: dict[tuple[int, int], MmioDevice] = {}
        self.pio: dict[tuple[int, int], PioDevice] = {}

    def map_mmio(self, base: int, size: int, device: MmioDevice) -> None:
        """Map, asserting that nothing overlaps."""
        assert all(base + size <= other or other + length <= base for other, length in self.mmio)
        self.mmio[base, size] = device

    def unmap_mmio(self, base: int, size: int, device: MmioDevice) -> None:
        """Unmap exactly what was mapped."""
        del self.mmio[base, size]

    def map_pio(self, base: int, size: int, device: PioDevice) -> None:
        """Map, asserting that nothing overlaps."""
        assert all(base + size <= other or other + length <= base for other, length in self.pio)
        self.pio[base, size] = device

    def unmap_pio(self, base: int, size: int, device: PioDevice) -> None:
        """Unmap exactly what was mapped."""
        del self.pio[base, size]

    def _find(self, address: int) -> tuple[MmioDevice, int] | None:
        for (base, size), device in self.mmio.items():
            if base <= address < base + size:
                return device, address - base
        return None

    def port_read(self, port: int, size: int) -> int:
        """A guest's IN; all ones where nothing decodes."""
        for (base, length), device in self.pio.items():
            if base <= port < base + length:
                return device.pio_read(port - base, size)
        return (1 << (8 * size)) - 1

    def port_write(self, port: int, size: int, value: int) -> None:
        """A guest's OUT; dropped where nothing decodes."""
        for (base, length), device in self.pio.items():
            if base <= port < base + length:
                device.pio_write(port - base, size, value)

    def read(self, address: int, size: int) -> int:
        """A guest's MMIO read; all ones where nothing decodes."""
        found = self._find(address)
        return found[0].mmio_read(found[1], size) if found else (1 << (8 * size)) - 1

    def write(self, address: int, size: int, value: int) -> None:
        """A guest's MMIO write; dropped where nothing decodes."""
        found = self._find(address)
        if found:
            found[0].mmio_write(found[1], size, value)


class PciDriver:
    """One function seen from the guest."""

    def __init__(self, host: PciHost, bus: FakeAddressSpace, slot: int) -> None:
        self._host = host
        self._bus = bus
        self._slot = slot

    def config_read(self, offset: int, size: int) -> int:
        """Read configuration space."""
        return self._host.config_read(0, self._slot, 0, offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write configuration space."""
        self._host.config_write(0, self._slot, 0, offset, size, value)

    def enable(self) -> None:
        """Turn on memory and I/O decoding and bus mastering."""
        self.config_write(cs.COMMAND, 2, cs.COMMAND_IO | cs.COMMAND_MEMORY | cs.COMMAND_MASTER)

    def bar(self, index: int) -> int:
        """The base that a memory BAR holds, both halves of a 64-bit one."""
        low = self.config_read(cs.BAR0 + 4 * index, 4)
        high = self.config_read(cs.BAR0 + 4 * index + 4, 4) if low & 4 else 0
        return (low & ~15) | high << 32

    def port(self, index: int) -> int:
        """The base that an I/O BAR holds."""
        return self.config_read(cs.BAR0 + 4 * index, 4) & ~3

    def capabilities(self) -> list[tuple[int, int]]:
        """(identifier, offset) of each, in list order."""
        found: list[tuple[int, int]] = []
        offset = self.config_read(cs.CAPABILITIES_POINTER, 1)
        while offset and len(found) < 48:
            found.append((self.config_read(offset, 1), offset))
            offset = self.config_read(offset + 1, 1)
        return found

    def read(self, bar: int, offset: int, size: int) -> int:
        """Read through a BAR."""
        return self._bus.read(self.bar(bar) + offset, size)

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write through a BAR."""
        self._bus.write(self.bar(bar) + offset, size, value)
