"""The PCI transport against virtio 1.2 §2, §3.1 and §4.1."""

from __future__ import annotations

import pytest

from sublet.devices.virtio.rng import VirtioRng
from sublet.testing import FakeClock, InlineExecutor, VirtioDriver

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 0x40
VERSION_1, RING_PACKED = 1 << 32, 1 << 34


@pytest.fixture
def driver() -> VirtioDriver:
    return VirtioDriver(VirtioRng(InlineExecutor(), FakeClock(), source=lambda size: b"r" * size))


def ask(driver: VirtioDriver, size: int = 16) -> None:
    queue = driver.queues[0]
    queue.add([], [(queue.alloc(size), size)])
    driver.notify(0)


def test_identity(driver: VirtioDriver) -> None:
    assert driver.pci.config_read(0, 4) == 0x1044_1AF4
    assert driver.pci.config_read(8, 1) >= 1  # §4.1.2.1: revision 1 or higher
    assert [kind for kind, _ in driver.pci.capabilities()].count(0x09) == 5


def test_capabilities_describe_structures_inside_their_bars(driver: VirtioDriver) -> None:
    kinds = {}
    for kind, at in driver.pci.capabilities():
        if kind == 0x09 and driver.pci.config_read(at + 3, 1) != 5:
            offset, length = driver.pci.config_read(at + 8, 4), driver.pci.config_read(at + 12, 4)
            kinds[driver.pci.config_read(at + 3, 1)] = (driver.pci.config_read(at + 4, 1), offset, length)
    assert set(kinds) == {1, 2, 3, 4}
    assert all(
        bar == 0 and offset % 4 == 0 and offset + length <= 0x4000 for bar, offset, length in kinds.values()
    )


def test_offers_version_1_and_no_packed_ring(driver: VirtioDriver) -> None:
    assert driver.device_features & VERSION_1
    assert not driver.device_features & RING_PACKED


def test_feature_words_past_the_second_read_zero(driver: VirtioDriver) -> None:
    driver.write(0, 4, 2)
    assert driver.read(4, 4) == 0


def test_features_ok_refused_without_version_1(driver: VirtioDriver) -> None:
    """§6.2: "A device MAY fail to operate further if VIRTIO_F_VERSION_1 is not accepted." """
    driver.status = 3
    driver.accept_features(0)
    driver.status = 11
    assert not driver.status & FEATURES_OK


def test_features_ok_refused_for_features_not_offered(driver: VirtioDriver) -> None:
    """§2.2.1: "The driver MUST NOT accept a feature which the device did not offer [...]" """
    driver.status = 3
    driver.accept_features(VERSION_1 | RING_PACKED)
    driver.status = 15
    assert driver.status == 3


def test_driver_ok_needs_features_ok(driver: VirtioDriver) -> None:
    driver.status = ACKNOWLEDGE | DRIVER | DRIVER_OK
    assert driver.status == ACKNOWLEDGE | DRIVER


def test_features_are_frozen_after_features_ok(driver: VirtioDriver) -> None:
    driver.start()
    before = driver.function.save_state()["driver_features"]
    driver.accept_features(VERSION_1)
    assert driver.function.save_state()["driver_features"] == before


def test_status_bits_are_not_cleared_by_writes(driver: VirtioDriver) -> None:
    """§2.1.1: "The driver MUST NOT clear a device status bit." """
    driver.status = 3
    driver.status = 1
    assert driver.status == 3


def test_reset_forgets_everything(driver: VirtioDriver) -> None:
    driver.start(msix=True)
    driver.status = 0
    assert driver.status == 0
    driver.write(22, 2, 0)
    assert driver.read(28, 2) == 0
    assert driver.read(32, 4) == 0
    assert driver.read(16, 2) == 0xFFFF


def test_queue_past_the_last_has_size_zero(driver: VirtioDriver) -> None:
    driver.write(22, 2, 5)
    assert driver.read(24, 2) == 0
    driver.write(24, 2, 4)
    driver.write(28, 2, 1)
    assert driver.read(24, 2) == 0


@pytest.mark.parametrize("size", [0, 3, 128, 0xFFFF])
def test_bad_queue_sizes_are_ignored(driver: VirtioDriver, size: int) -> None:
    driver.write(22, 2, 0)
    before = driver.read(24, 2)
    driver.write(24, 2, size)
    assert driver.read(24, 2) == before


def test_queue_size_may_shrink(driver: VirtioDriver) -> None:
    driver.write(22, 2, 0)
    driver.write(24, 2, 16)
    assert driver.read(24, 2) == 16


def test_enabled_queue_cannot_move(driver: VirtioDriver) -> None:
    driver.start()
    before = driver.read(32, 4)
    driver.write(32, 4, 0x7000)
    assert driver.read(32, 4) == before


def test_unknown_msix_vector_reads_back_as_none(driver: VirtioDriver) -> None:
    """§4.1.5.1.2.1: the device reports mapping failures by returning NO_VECTOR."""
    driver.write(16, 2, 77)
    assert driver.read(16, 2) == 0xFFFF


def test_msix_interrupts_name_the_queue(driver: VirtioDriver) -> None:
    driver.start(msix=True)
    ask(driver)
    assert driver.msi.messages == [(0xFEE0_0000, 0x41)]
    assert not driver.line.level


def test_intx_until_isr_is_read(driver: VirtioDriver) -> None:
    driver.start()
    ask(driver)
    assert driver.line.level
    assert driver.read(0x1000, 1) == 1
    assert not driver.line.level
    assert driver.read(0x1000, 1) == 0


def test_broken_queue_sets_needs_reset_and_tells_the_driver(driver: VirtioDriver) -> None:
    """§2.1.2: "The device SHOULD set DEVICE_NEEDS_RESET when it enters an error state that a reset is needed.
    If DRIVER_OK is set, after it sets DEVICE_NEEDS_RESET, the device MUST send a device configuration
    change notification to the driver." """
    driver.start(msix=True)
    driver.queues[0].make_available(0xFFFF)
    driver.notify(0)
    assert driver.status & NEEDS_RESET
    assert driver.msi.messages == [(0xFEE0_0000, 0x40)]
    driver.notify(0)
    driver.start(msix=True)
    assert not driver.status & NEEDS_RESET


def test_unaligned_queue_needs_reset(driver: VirtioDriver) -> None:
    driver.status = 3
    driver.accept_features(VERSION_1)
    driver.status = 11
    driver.write(32, 4, 8)
    driver.write(28, 2, 1)
    driver.status = 15
    assert driver.status & NEEDS_RESET


def test_wrong_widths_read_zero_or_less_and_write_nothing(driver: VirtioDriver) -> None:
    """§4.1.3.1 has drivers take a field whole; iPXE reads the lower half of some."""
    driver.write(20, 4, 3)
    assert driver.status == 0
    assert driver.read(20, 4) == 0
    assert driver.read(4, 2) == driver.read(4, 4) & 0xFFFF
    assert driver.read(63, 1) == 0


def test_buffers_made_available_before_driver_ok_are_served(driver: VirtioDriver) -> None:
    driver.status = 3
    driver.accept_features(VERSION_1)
    driver.status = 11
    driver.setup_queues()
    queue = driver.queues[0]
    queue.add([], [(queue.alloc(8), 8)])
    driver.status = 15
    assert queue.used() == [(0, 8)]


def test_pci_configuration_access_window(driver: VirtioDriver) -> None:
    """§4.1.4.9: the window reads and writes BAR regions through configuration space."""
    at = next(
        at for kind, at in driver.pci.capabilities() if kind == 9 and driver.pci.config_read(at + 3, 1) == 5
    )
    driver.pci.config_write(at + 4, 1, 0)
    driver.pci.config_write(at + 8, 4, 20)
    driver.pci.config_write(at + 12, 4, 1)
    driver.pci.config_write(at + 16, 1, 3)
    assert driver.status == 3
    assert driver.pci.config_read(at + 16, 1) == 3
    driver.pci.config_write(at + 12, 4, 3)  # an illegal length does nothing
    driver.pci.config_write(at + 16, 4, 0)
    assert driver.status == 3


def test_notifications_of_unknown_queues_and_before_driver_ok_do_nothing(driver: VirtioDriver) -> None:
    driver.notify(0)
    driver.start()
    driver.notify(500)
    assert not driver.status & NEEDS_RESET


def test_state_moves_to_a_fresh_device(driver: VirtioDriver) -> None:
    driver.start(msix=True)
    ask(driver)
    other = VirtioDriver(
        VirtioRng(InlineExecutor(), FakeClock(), source=lambda size: b"s" * size), driver.memory
    )
    other.host.load_state(driver.host.save_state())
    other.queues = driver.queues
    other.queues[0].set_used_event(1)
    ask(other)
    assert other.msi.messages == [(0xFEE0_0000, 0x41)]
    assert len(driver.queues[0].used()) == 2
