"""Configuration space, BAR decoding, INTx routing and MSI-X."""

from __future__ import annotations

import pytest

from sublet.devices.pci import (
    Bar,
    BarKind,
    IntxRouter,
    MsixTable,
    PciConfigPorts,
    PciDevice,
    PciEcam,
    PciHost,
    Window,
    intx_gsi,
)
from sublet.devices.pci import config_space as cs
from sublet.devices.platform import ResetRegister
from sublet.testing import FakeAddressSpace, PciDriver, RecordingIrqLine, RecordingMsiSink

MEMORY32 = Window(0xC000_0000, 0x1000_0000)
MEMORY64 = Window(1 << 40, 1 << 30)
IO = Window(0xC000, 0x1000)


class Registers:
    """A region that answers with its offset."""

    def mmio_read(self, offset: int, size: int) -> int:
        return offset

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        pass

    pio_read, pio_write = mmio_read, mmio_write


class Board:
    """A host with one device of three BARs in slot 2."""

    def __init__(self) -> None:
        self.bus = FakeAddressSpace()
        self.lines = [RecordingIrqLine() for _ in range(8)]
        self.host = PciHost(self.bus, IntxRouter(self.lines), memory32=MEMORY32, memory64=MEMORY64, io=IO)
        self.device = make_device()
        self.host.plug(2, self.device)
        self.host.assign_bars()
        self.driver = PciDriver(self.host, self.bus, 2)


def make_device() -> PciDevice:
    device = PciDevice(vendor_id=0x1234, device_id=0x5678, class_code=0xFF0000, interrupt_pin=1)
    device.add_bar(Bar(0, BarKind.MEMORY64, 0x4000, Registers()))
    device.add_bar(Bar(2, BarKind.MEMORY32, 0x1000, Registers()))
    device.add_bar(Bar(3, BarKind.IO, 0x20, Registers()))
    return device


@pytest.fixture
def board() -> Board:
    return Board()


def test_absent_functions_read_all_ones(board: Board) -> None:
    assert board.host.config_read(0, 5, 0, 0, 4) == 0xFFFF_FFFF
    assert board.host.config_read(0, 2, 1, 0, 2) == 0xFFFF
    assert board.host.config_read(1, 2, 0, 0, 4) == 0xFFFF_FFFF
    board.host.config_write(0, 5, 0, 4, 4, 7)


def test_identity_is_read_only(board: Board) -> None:
    board.driver.config_write(0, 4, 0xDEAD_BEEF)
    assert board.driver.config_read(0, 4) == 0x5678_1234


def test_bar_sizing_by_all_ones(board: Board) -> None:
    for index, expected in [(0, 0xFFFF_C004), (1, 0xFFFF_FFFF), (2, 0xFFFF_F000), (3, 0xFFFF_FFE1)]:
        board.driver.config_write(0x10 + 4 * index, 4, 0xFFFF_FFFF)
        assert board.driver.config_read(0x10 + 4 * index, 4) == expected


def test_bars_decode_only_when_enabled(board: Board) -> None:
    assert not board.bus.mmio
    board.driver.enable()
    assert board.bus.read(board.driver.bar(0) + 0x123, 4) == 0x123
    assert len(board.bus.pio) == 1
    board.driver.config_write(4, 2, 0)
    assert not board.bus.mmio
    assert not board.bus.pio


def test_guest_moves_a_bar(board: Board) -> None:
    board.driver.enable()
    board.driver.config_write(0x18, 4, 0xC123_4000)
    assert board.bus.read(0xC123_4010, 4) == 0x10


def test_sizing_with_decoding_on_unmaps_and_restores(board: Board) -> None:
    board.driver.enable()
    before = set(board.bus.mmio)
    old = board.driver.config_read(0x18, 4)
    board.driver.config_write(0x18, 4, 0xFFFF_FFFF)
    assert set(board.bus.mmio) < before
    board.driver.config_write(0x18, 4, old)
    assert set(board.bus.mmio) == before


@pytest.mark.parametrize("base", [0, 0x1000, 0xFEE0_0000, 0xE000_0000])
def test_bars_outside_the_windows_do_not_decode(board: Board, base: int) -> None:
    board.driver.enable()
    board.driver.config_write(0x18, 4, base)
    assert all(mapped != base for mapped, _ in board.bus.mmio)


def test_overlapping_bars_first_mapped_wins(board: Board) -> None:
    other = make_device()
    board.host.plug(3, other)
    board.host.assign_bars()
    driver = PciDriver(board.host, board.bus, 3)
    board.driver.enable()
    driver.enable()
    base = board.driver.config_read(0x18, 4)
    driver.config_write(0x18, 4, base)
    assert board.bus.mmio[base, 0x1000] is board.device.bars[1].handler
    board.driver.config_write(4, 2, 0)
    assert board.bus.mmio[base, 0x1000] is other.bars[1].handler


def test_capability_list_links(board: Board) -> None:
    first = board.device.config.add_capability(0x09, b"\x10\x01")
    second = board.device.config.add_capability(0x11, bytes(10))
    assert board.driver.capabilities() == [(0x09, first), (0x11, second)]
    assert board.driver.config_read(6, 2) & 0x10


def test_config_ports_reach_the_same_space(board: Board) -> None:
    resets: list[int] = []
    ports = PciConfigPorts(board.host, ResetRegister(lambda: resets.append(1)))
    assert ports.pio_read(4, 4) == 0xFFFF_FFFF
    ports.pio_write(0, 4, 0x8000_0000 | 2 << 11 | 0x08)
    assert ports.pio_read(0, 4) == 0x8000_1008
    assert ports.pio_read(7, 1) == 0xFF
    ports.pio_write(0, 1, 0)
    assert ports.pio_read(0, 4) == 0x8000_1008
    ports.pio_write(1, 1, 0x06)
    assert resets == [1]


def test_ecam_decodes_slot_and_register(board: Board) -> None:
    ecam = PciEcam(board.host)
    assert ecam.mmio_read(2 << 15, 4) == 0x5678_1234
    assert ecam.mmio_read(2 << 15 | 0x100, 4) == 0
    ecam.mmio_write(2 << 15 | 4, 2, 2)
    assert board.bus.mmio


def test_intx_lines_are_shared_and_level(board: Board) -> None:
    assert intx_gsi(2, 0) == 18
    other = make_device()
    board.host.plug(10, other)
    line = board.lines[2]
    board.device.set_intx(True)
    other.set_intx(True)
    board.device.set_intx(False)
    assert line.level
    other.set_intx(False)
    assert not line.level


def test_intx_disable_and_status_bit(board: Board) -> None:
    board.device.set_intx(True)
    assert board.driver.config_read(6, 2) & 8
    board.driver.config_write(4, 2, 1 << 10)
    assert not board.lines[2].level
    board.driver.config_write(4, 2, 0)
    assert board.lines[2].level


def test_reset_reassigns_bars_and_stops_decoding(board: Board) -> None:
    first = board.driver.bar(0)
    board.driver.enable()
    board.driver.config_write(0x18, 4, 0xC800_0000)
    board.host.reset()
    assert not board.bus.mmio
    assert board.driver.bar(0) == first


def test_state_round_trip_remaps(board: Board) -> None:
    board.driver.enable()
    board.driver.config_write(0x18, 4, 0xC800_0000)
    other = Board()
    other.host.load_state(board.host.save_state())
    assert set(other.bus.mmio) == set(board.bus.mmio)


class MsixBoard(Board):
    """The board's device with two MSI-X vectors in BAR 4."""

    def __init__(self) -> None:
        super().__init__()
        self.msi = RecordingMsiSink()
        self.table = MsixTable(self.device, 4, 2, self.msi)
        self.host.assign_bars()
        self.driver.enable()
        self.capability = dict(self.driver.capabilities())[0x11]

    def control(self, value: int) -> None:
        self.driver.config_write(self.capability + 2, 2, value)
        self.table.config_written()

    def program(self, vector: int, *, masked: bool) -> None:
        for offset, value in ((0, 0xFEE0_1000), (4, 0), (8, 0x30 + vector), (12, int(masked))):
            self.driver.write(4, 16 * vector + offset, 4, value)


def test_msix_delivers_when_enabled_and_unmasked() -> None:
    board = MsixBoard()
    board.program(1, masked=False)
    board.table.notify(1)
    assert board.msi.messages == []
    board.control(0x8000)
    board.table.notify(1)
    assert board.msi.messages == [(0xFEE0_1000, 0x31)]


def test_msix_masked_vector_is_pending_until_unmasked() -> None:
    board = MsixBoard()
    board.control(0x8000)
    board.program(0, masked=True)
    board.table.notify(0)
    assert board.driver.read(4, 0x800, 4) == 1
    board.program(0, masked=False)
    assert board.msi.messages == [(0xFEE0_1000, 0x30)]
    assert board.driver.read(4, 0x800, 4) == 0


def test_msix_function_mask_holds_everything() -> None:
    board = MsixBoard()
    board.program(0, masked=False)
    board.control(0xC000)
    board.table.notify(0)
    assert board.msi.messages == []
    board.control(0x8000)
    assert len(board.msi.messages) == 1


def test_msix_needs_bus_mastering() -> None:
    board = MsixBoard()
    board.program(0, masked=False)
    board.control(0x8000)
    board.driver.config_write(4, 2, 2)
    board.table.notify(0)
    assert board.msi.messages == []


@pytest.mark.parametrize("vector", [-1, 2, 0xFFFF])
def test_msix_unknown_vectors_are_dropped(vector: int) -> None:
    board = MsixBoard()
    board.control(0x8000)
    board.table.notify(vector)
    assert board.msi.messages == []


def test_msix_ignores_byte_writes_and_pba_writes() -> None:
    board = MsixBoard()
    board.driver.write(4, 0, 1, 0xFF)
    board.driver.write(4, 0x800, 4, 0xFF)
    assert board.driver.read(4, 0, 4) == 0
    assert board.driver.read(4, 0x800, 4) == 0


def test_functions_of_one_slot() -> None:
    """PCI 3.0 §6.2.1 "Device Identification": bit 7 of the header type says that there are more functions."""
    board = Board()
    second = PciDevice(vendor_id=0x1234, device_id=0x0002, class_code=0xFF0000)
    board.host.plug(2, second, function=1)
    assert board.host.config_read(0, 2, 1, cs.DEVICE_ID, 2) == 0x0002
    assert board.host.config_read(0, 2, 0, cs.HEADER_TYPE, 1) == cs.HEADER_MULTIFUNCTION
    assert board.host.config_read(0, 2, 2, cs.VENDOR_ID, 2) == 0xFFFF
