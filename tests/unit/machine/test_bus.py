"""Dispatch of port and memory-mapped I/O."""

from __future__ import annotations

import pytest

from sublet.machine.bus import BusConflict, MmioBus, PortBus


class Recorder:
    """A device that answers with its offset and records writes."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int, int]] = []

    def pio_read(self, offset: int, size: int) -> int:
        return offset

    def pio_write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))

    mmio_read, mmio_write = pio_read, pio_write


@pytest.fixture
def device() -> Recorder:
    return Recorder()


@pytest.fixture
def ports(device: Recorder) -> PortBus:
    bus = PortBus()
    bus.add(0x3F8, 8, device)
    return bus


@pytest.fixture
def mmio(device: Recorder) -> MmioBus:
    bus = MmioBus()
    bus.add(0x1000, 0x1000, device)
    return bus


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFF_FFFF)])
def test_undecoded_ports_read_all_ones_and_drop_writes(ports: PortBus, size: int, ones: int) -> None:
    assert ports.read(0x80, size) == ones
    ports.write(0x80, size, 0)


def test_ports_are_relative_to_the_device(ports: PortBus, device: Recorder) -> None:
    assert ports.read(0x3FD, 1) == 5
    ports.write(0x3F9, 1, 7)
    assert device.writes == [(1, 1, 7)]


def test_access_over_the_end_of_a_device_goes_bytewise(ports: PortBus, device: Recorder) -> None:
    assert ports.read(0x3FF, 2) == 0xFF07
    ports.write(0x3FE, 4, 0x4433_2211)
    assert device.writes == [(6, 1, 0x11), (7, 1, 0x22)]


def test_access_over_the_last_port_wraps() -> None:
    assert PortBus().read(0xFFFF, 4) == 0xFFFF_FFFF


def test_ports_of_two_devices_may_not_overlap(ports: PortBus, device: Recorder) -> None:
    with pytest.raises(BusConflict, match="0x3f8"):
        ports.add(0x3F0, 9, device)
    assert ports.read(0x3F0, 1) == 0xFF


def test_removed_ports_are_free(ports: PortBus, device: Recorder) -> None:
    ports.remove(0x3F8, 8)
    assert ports.read(0x3F8, 1) == 0xFF
    ports.add(0x3F8, 1, device)


@pytest.mark.parametrize("address", [0, 0xFFF, 0x2000, 0x1FFD, (1 << 64) - 4])
def test_undecoded_memory_reads_all_ones(mmio: MmioBus, device: Recorder, address: int) -> None:
    assert mmio.read(address, 4) == 0xFFFF_FFFF
    mmio.write(address, 4, 0)
    assert device.writes == []


def test_memory_is_relative_to_the_region(mmio: MmioBus, device: Recorder) -> None:
    assert mmio.read(0x1FFC, 4) == 0xFFC
    mmio.write(0x1000, 8, 9)
    assert device.writes == [(0, 8, 9)]


@pytest.mark.parametrize("start", [0x800, 0x1000, 0x1FFF])
def test_regions_may_not_overlap(mmio: MmioBus, device: Recorder, start: int) -> None:
    with pytest.raises(BusConflict):
        mmio.add(start, 0x1000, device)


def test_a_region_can_move(mmio: MmioBus, device: Recorder) -> None:
    mmio.remove(0x1000, 0x1000)
    mmio.add(0x8000, 0x1000, device)
    assert (mmio.read(0x1000, 1), mmio.read(0x8004, 1)) == (0xFF, 4)
