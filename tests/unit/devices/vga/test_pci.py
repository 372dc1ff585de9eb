"""The PCI function: identity, framebuffer, registers by memory."""

from __future__ import annotations

from tests.judges.vga.adapters import OurVga

from sublet.devices.pci import PciHost, Window
from sublet.devices.vga import VgaPci
from sublet.testing import FakeAddressSpace, PciDriver, RecordingIrqLine


class Card:
    """The adapter in slot 2, decoding."""

    def __init__(self) -> None:
        self.ours = OurVga()
        self.function = VgaPci(self.ours.vga, self.ours.video_ram)
        bus = FakeAddressSpace()
        lines = [RecordingIrqLine() for _ in range(8)]
        memory = Window(0xC000_0000, 0x1000_0000)
        host = PciHost(bus, lines, memory32=memory, memory64=Window(1 << 40, 1), io=Window(0xC000, 1))
        host.plug(2, self.function)
        host.assign_bars()
        self.driver = PciDriver(host, bus, 2)
        self.driver.enable()


def test_identity() -> None:
    driver = Card().driver
    assert driver.config_read(0, 4) == 0x1111_1234
    assert driver.config_read(8, 4) == 0x0300_0002


def test_the_framebuffer_is_ram() -> None:
    card = Card()
    window = card.ours.video_ram.windows[-1]
    assert window.placed == (card.driver.bar(0), 16 << 20, 0)


def test_a_mode_set_by_memory() -> None:
    card = Card()
    for index, value in ((1, 800), (2, 600), (3, 32), (4, 0x41)):
        card.driver.write(2, 0x500 + 2 * index, 2, value)
    assert card.ours.vga.dispi.mode().width == 800
    assert card.driver.read(2, 0x500, 2) == 0xB0C5
    assert card.driver.read(2, 0x502, 4) == 800 | 600 << 16
    assert card.driver.read(2, 0x604, 4) == 0x1E1E_1E1E


def test_ports_by_memory() -> None:
    card = Card()
    card.driver.write(2, 0x402, 1, 0x63)
    card.driver.write(2, 0x414, 2, 0x5A0C)  # 3D4h: CRTC register 0Ch
    assert card.ours.vga.registers.crtc[0x0C] == 0x5A
    assert card.driver.read(2, 0x40C, 1) == 0x63


def test_reset_ends_the_mode() -> None:
    card = Card()
    card.driver.write(2, 0x508, 2, 0x41)
    card.function.reset()
    assert not card.ours.vga.dispi.enabled


def test_state_round_trip() -> None:
    card = Card()
    card.driver.write(2, 0x508, 2, 0x41)
    other = Card()
    other.function.load_state(card.function.save_state())
    assert other.ours.vga.dispi.enabled
