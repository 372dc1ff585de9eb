"""The flash's commands, in the order in which UEFI's driver gives them."""

from __future__ import annotations

from sublet.devices.platform.flash import BLOCK_SIZE, Flash
from sublet.testing import FakeDeviceRam

BASE, SIZE = 0xFFC0_0000, 4 * BLOCK_SIZE


class Chip:
    def __init__(self) -> None:
        self.ram = FakeDeviceRam(SIZE)
        self.ram.buffer[:] = b"\xff" * SIZE
        self.changes = 0
        self.flash = Flash(self.ram, BASE, self._count)

    def _count(self) -> None:
        self.changes += 1

    @property
    def shows_array(self) -> bool:
        return self.ram.windows[0].placed == (BASE, SIZE, 0)

    def write(self, offset: int, *values: int) -> None:
        for value in values:
            self.flash.mmio_write(offset, 1, value)


def test_the_guest_tells_flash_from_rom_and_ram() -> None:
    """OVMF writes READ STATUS: RAM would give it back, ROM what was there, flash gives a status of zero."""
    chip = Chip()
    assert chip.shows_array
    chip.write(0x10, 0x50)
    chip.write(0x10, 0x70)
    assert not chip.shows_array
    assert chip.flash.mmio_read(0x10, 1) == 0
    chip.write(0x10, 0xFF)
    assert chip.shows_array
    chip.write(0x10, 0x10, 0xFF)
    assert chip.flash.mmio_read(0x10, 1) == 0x80


def test_writes_that_do_not_count_change_nothing() -> None:
    ram = FakeDeviceRam(SIZE)
    flash = Flash(ram, BASE, lambda: None, lambda: False)
    before = bytes(ram.buffer)
    for value in (0x10, 0x00, 0xFF):
        flash.mmio_write(0x20, 1, value)
    assert bytes(ram.buffer) == before


def test_programming_clears_bits_and_erasing_sets_them() -> None:
    chip = Chip()
    chip.write(0x1001, 0x10, 0xF0, 0x10, 0x3C, 0xFF)
    assert chip.ram.buffer[0x1001] == 0x30
    assert chip.changes == 1
    chip.write(0x1234, 0x20, 0xD0, 0xFF)
    assert bytes(chip.ram.buffer) == b"\xff" * SIZE
    assert chip.changes == 2


def test_an_erasure_that_is_not_confirmed_is_an_error() -> None:
    chip = Chip()
    chip.write(0x10, 0x10, 0x00)
    chip.write(0x10, 0x20, 0x00)
    assert chip.flash.mmio_read(0x10, 1) & 0x30
    assert chip.ram.buffer[0x10] == 0


def test_state_survives_in_the_middle_of_a_command() -> None:
    chip, other = Chip(), Chip()
    chip.write(0x20, 0x10)
    other.flash.load_state(chip.flash.save_state())
    other.write(0x20, 0x55, 0xFF)
    assert other.ram.buffer[0x20] == 0x55
