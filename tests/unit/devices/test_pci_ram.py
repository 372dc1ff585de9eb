"""BARs that are RAM, and expansion ROMs."""

from __future__ import annotations

from sublet.devices.pci import Bar, BarKind, IntxRouter, PciDevice, PciHost, Window
from sublet.devices.pci import config_space as cs
from sublet.testing import FakeAddressSpace, FakeDeviceRam, FakeRamWindow, PciDriver, RecordingIrqLine

MEMORY32 = Window(0xC000_0000, 0x1000_0000)


class Card:
    """A framebuffer of 64 KiB at BAR 0 and a ROM of 4 KiB, in slot 2."""

    def __init__(self) -> None:
        device = PciDevice(vendor_id=0x1234, device_id=0x1111, class_code=0x030000)
        self.ram, self.rom = FakeDeviceRam(0x1_0000), FakeDeviceRam(0x1000)
        device.add_bar(Bar(0, BarKind.MEMORY32, 0x1_0000, self.ram.window()))
        device.add_rom(b"\x55\xaa rom", self.rom)
        bus = FakeAddressSpace()
        lines = [RecordingIrqLine() for _ in range(8)]
        host = PciHost(
            bus, IntxRouter(lines), memory32=MEMORY32, memory64=Window(1 << 40, 1), io=Window(0xC000, 1)
        )
        host.plug(2, device)
        host.assign_bars()
        self.driver = PciDriver(host, bus, 2)

    def window(self, ram: FakeDeviceRam) -> FakeRamWindow:
        return ram.windows[0]


def test_ram_shows_where_the_bar_decodes() -> None:
    card = Card()
    window = card.window(card.ram)
    assert window.placed is None
    card.driver.enable()
    assert window.placed == (card.driver.bar(0), 0x1_0000, 0)
    card.driver.config_write(cs.BAR0, 4, 0xC800_0000)
    assert window.placed == (0xC800_0000, 0x1_0000, 0)
    card.driver.config_write(cs.COMMAND, 2, 0)
    assert window.placed is None


def test_rom_register_gives_its_size_and_has_no_type_bits() -> None:
    card = Card()
    card.driver.config_write(cs.EXPANSION_ROM, 4, 0xFFFF_F800)
    assert card.driver.config_read(cs.EXPANSION_ROM, 4) == 0xFFFF_F000


def test_rom_needs_both_its_own_bit_and_the_command_register() -> None:
    card = Card()
    window = card.window(card.rom)
    assert window.readonly
    assert bytes(card.rom.buffer[:6]) == b"\x55\xaa rom"
    card.driver.enable()
    assert window.placed is None
    card.driver.config_write(cs.EXPANSION_ROM, 4, 0xC900_0001)
    assert window.placed == (0xC900_0000, 0x1000, 0)
    card.driver.config_write(cs.COMMAND, 2, 0)
    assert window.placed is None


def test_a_rom_and_a_bar_get_different_addresses() -> None:
    card = Card()
    rom = card.driver.config_read(cs.EXPANSION_ROM, 4)
    assert not card.driver.bar(0) <= rom < card.driver.bar(0) + 0x1_0000
