"""Transitional devices seen by drivers of virtio 0.9.5 (virtio 1.2, the sections "Legacy Interface")."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from sublet.devices.virtio import VirtioDevice
from sublet.devices.virtio.block import VirtioBlock
from sublet.devices.virtio.console import VirtioConsole
from sublet.devices.virtio.net import VirtioNet
from sublet.devices.virtio.rng import VirtioRng
from sublet.testing import FakeClock, FakeSink, InlineExecutor, RamDisk, VirtioDriver
from sublet.testing.virtio_legacy import LegacyVirtioDriver

MAC = bytes.fromhex("525400123456")
F_VERSION_1, F_ANY_LAYOUT, F_MRG_RXBUF = 1 << 32, 1 << 27, 1 << 15
MSIX_CAPABILITY = 0x11


def rng() -> VirtioRng:
    return VirtioRng(InlineExecutor(), FakeClock(), source=lambda size: b"r" * size)


def disk() -> VirtioBlock:
    return VirtioBlock(RamDisk(1 << 16), InlineExecutor(), serial="s")


def net() -> VirtioNet:
    return VirtioNet(FakeSink(), InlineExecutor(), mac=MAC)


def console() -> VirtioConsole:
    return VirtioConsole(lambda data: None, InlineExecutor())


@pytest.fixture
def driver() -> LegacyVirtioDriver:
    return LegacyVirtioDriver(rng())


def ask(driver: LegacyVirtioDriver, size: int = 16) -> bytes:
    queue = driver.queues[0]
    gpa = queue.alloc(size)
    queue.add([], [(gpa, size)])
    driver.notify(0)
    return driver.memory.read(gpa, size)


@pytest.mark.parametrize(
    ("make", "device_id", "kind"),
    [(net, 0x1000, 1), (disk, 0x1001, 2), (console, 0x1003, 3), (rng, 0x1005, 4)],
)
def test_identity(make: Callable[[], VirtioDevice], device_id: int, kind: int) -> None:
    """§4.1.2.3: the transitional device identifier, revision 0, and the device type as subsystem."""
    driver = LegacyVirtioDriver(make())
    assert driver.pci.config_read(0, 4) == device_id << 16 | 0x1AF4
    assert driver.pci.config_read(8, 1) == 0
    assert driver.pci.config_read(0x2E, 2) == kind
    assert driver.pci.config_read(0x10, 4) & 1


def test_initialization_without_features_ok(driver: LegacyVirtioDriver) -> None:
    driver.start_legacy()
    assert driver.legacy_status == 7
    assert ask(driver) == b"r" * 16
    assert driver.input(19, 1) == 1  # the ISR, which reading clears
    assert driver.input(19, 1) == 0


def test_features_are_32_bits_and_any_layout(driver: LegacyVirtioDriver) -> None:
    assert driver.input(0, 4) & F_ANY_LAYOUT
    driver.output(4, 4, 0xFFFF_FFFF)
    assert driver.input(4, 4) == driver.input(0, 4)
    driver.start_legacy()
    assert not driver.device.features & F_VERSION_1


def test_queues_used_before_driver_ok(driver: LegacyVirtioDriver) -> None:
    """§3.1.2: "[...] the device MAY be used before DRIVER_OK" by old drivers, which set it afterwards."""
    driver.start_legacy(driver_ok=False)
    assert ask(driver) == b"r" * 16
    driver.legacy_status = 7
    assert ask(driver) == b"r" * 16
    assert len(driver.queues[0].used()) == 2


def test_notifications_before_the_driver_are_ignored(driver: LegacyVirtioDriver) -> None:
    driver.notify(0)
    assert driver.legacy_status == 0


def test_taking_a_queue_away_stops_the_device(driver: LegacyVirtioDriver) -> None:
    driver.start_legacy()
    driver.output(14, 2, 0)
    driver.output(8, 4, 0)
    assert driver.legacy_status == 0
    assert driver.input(8, 4) == 0


def test_a_queue_past_the_last(driver: LegacyVirtioDriver) -> None:
    driver.output(14, 2, 7)
    assert driver.input(12, 2) == 0
    driver.output(8, 4, 5)
    assert driver.input(8, 4) == 0


def test_a_queue_outside_memory_is_the_drivers_fault(driver: LegacyVirtioDriver) -> None:
    driver.legacy_status = 3
    driver.output(8, 4, 0xFFFF_FFFF)
    driver.legacy_status = 7
    driver.notify(0)
    assert driver.status & 0x40  # DEVICE_NEEDS_RESET, where a modern driver looks
    driver.start_legacy()
    assert ask(driver) == b"r" * 16


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (12, 4), (18, 2), (19, 4), (17, 1)])
def test_accesses_of_another_width(driver: LegacyVirtioDriver, offset: int, size: int) -> None:
    driver.output(offset, size, 0xFF)
    assert driver.input(offset, size) == 0
    assert driver.legacy_status == 0


def test_vectors_and_configuration_move_with_msix() -> None:
    driver = LegacyVirtioDriver(disk())
    assert driver.config(0, 4) == (1 << 16) // 512
    driver.start_legacy()
    capability = dict(driver.pci.capabilities())[MSIX_CAPABILITY]
    driver.pci.write(1, 16, 4, 0xFEE0_0000)
    driver.pci.write(1, 24, 4, 0x41)
    driver.pci.write(1, 28, 4, 0)
    driver.pci.config_write(capability + 2, 2, 0x8000)
    assert driver.input(24, 4) == (1 << 16) // 512
    driver.output(14, 2, 0)
    driver.output(22, 2, 1)
    assert driver.input(22, 2) == 1
    driver.output(22, 2, 99)
    assert driver.input(22, 2) == 0xFFFF
    driver.output(22, 2, 1)
    read_sector(driver)
    assert driver.msi.messages == [(0xFEE0_0000, 0x41)]


def read_sector(driver: LegacyVirtioDriver) -> tuple[bytes, int]:
    queue = driver.queues[0]
    data, status = queue.alloc(512), queue.alloc(1)
    queue.add([driver.put(queue, struct.pack("<IIQ", 0, 0, 1))], [(data, 512), (status, 1)])
    driver.notify(0)
    return driver.memory.read(data, 512), driver.memory.read(status, 1)[0]


def test_a_disk() -> None:
    image = RamDisk(1 << 16)
    image.write(512, b"sector 1".ljust(512, b"."))
    driver = LegacyVirtioDriver(VirtioBlock(image, InlineExecutor()))
    driver.start_legacy()
    assert read_sector(driver) == (b"sector 1".ljust(512, b"."), 0)


@pytest.mark.parametrize(("features", "header"), [(F_MRG_RXBUF, 12), (0, 10)])
def test_a_network_card(features: int, header: int) -> None:
    """§5.1.6.1: without VERSION_1 the header has num_buffers only if buffers are merged."""
    card = net()
    driver = LegacyVirtioDriver(card)
    assert bytes(driver.config(i, 1) for i in range(6)) == MAC
    driver.start_legacy(features)
    frame = b"\xff" * 6 + bytes(54)
    queue = driver.queues[1]
    queue.add([driver.put(queue, bytes(header) + frame)], [])
    driver.notify(1)
    assert card._sink.sent == [bytes(12) + frame]
    gpa = driver.queues[0].alloc(1600)
    driver.queues[0].add([], [(gpa, 1600)])
    driver.notify(0)
    assert card.receive([bytes(12) + frame]) == 1
    assert driver.queues[0].used() == [(0, header + len(frame))]
    assert driver.memory.read(gpa + header, len(frame)) == frame


def test_modern_drivers_find_their_structures() -> None:
    driver = VirtioDriver(rng(), transitional=True)
    driver.start(msix=False)
    queue = driver.queues[0]
    gpa = queue.alloc(16)
    queue.add([], [(gpa, 16)])
    driver.notify(0)
    assert driver.memory.read(gpa, 16) == b"r" * 16


def test_a_saved_device_goes_on(driver: LegacyVirtioDriver) -> None:
    driver.start_legacy()
    ask(driver)
    state: dict[str, Any] = driver.function.save_state()
    driver.function.reset()
    driver.function.load_state(state)
    driver.host.remap()
    assert ask(driver) == b"r" * 16
    assert len(driver.queues[0].used()) == 2
