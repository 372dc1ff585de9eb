"""The DMA controllers: registers, wrapping, terminal count."""

from __future__ import annotations

from sublet.devices.legacy.dma import IsaDma
from sublet.testing import FakeGuestMemory


def program(dma: IsaDma, channel: int, address: int, size: int, mode: int) -> None:
    first = dma.first
    first.pio_write(12, 1, 0)
    for value in (address & 0xFF, address >> 8 & 0xFF):
        first.pio_write(2 * channel, 1, value)
    for value in ((size - 1) & 0xFF, size - 1 >> 8):
        first.pio_write(2 * channel + 1, 1, value)
    first.pio_write(11, 1, mode | channel)
    dma.pages.pio_write({1: 3, 2: 1, 3: 2}[channel], 1, address >> 16)
    first.pio_write(10, 1, channel)


def make() -> tuple[FakeGuestMemory, IsaDma]:
    memory = FakeGuestMemory(1 << 20)
    return memory, IsaDma(memory)


def test_registers_read_back_through_the_flip_flop() -> None:
    _, dma = make()
    program(dma, 2, 0x31234, 0x1000, 0x44)
    dma.first.pio_write(12, 1, 0)
    assert [dma.first.pio_read(4, 1) for _ in range(2)] == [0x34, 0x12]
    assert [dma.first.pio_read(5, 1) for _ in range(2)] == [0xFF, 0x0F]


def test_addresses_wrap_in_their_page() -> None:
    memory, dma = make()
    program(dma, 2, 0x3FFFE, 4, 0x44)
    dma.channel(2).to_memory(b"abcd")
    assert memory.read(0x3FFFE, 2) == b"ab"
    assert memory.read(0x30000, 2) == b"cd"


def test_the_terminal_count_masks_the_channel() -> None:
    _, dma = make()
    program(dma, 1, 0x10000, 8, 0x48)
    channel = dma.channel(1)
    assert channel.left == 8
    channel.from_memory(8)
    assert channel.left == 0
    assert dma.first.pio_read(8, 1) == 2
    assert dma.first.pio_read(8, 1) == 0


def test_auto_initialize_starts_again() -> None:
    memory, dma = make()
    program(dma, 3, 0x10000, 4, 0x54)
    channel = dma.channel(3)
    channel.to_memory(b"once")
    channel.to_memory(b"more")
    assert memory.read(0x10000, 4) == b"more"


def test_decrement_and_verify() -> None:
    memory, dma = make()
    program(dma, 1, 0x10003, 4, 0x64)
    dma.channel(1).to_memory(b"dcba")
    assert memory.read(0x10000, 4) == b"abcd"
    program(dma, 1, 0x10000, 4, 0x40)
    dma.channel(1).to_memory(b"xxxx")
    assert memory.read(0x10000, 4) == b"abcd"


def test_the_second_controller_and_snapshots() -> None:
    _, dma = make()
    dma.second.pio_write(0x04, 1, 0x12)
    dma.pages.pio_write(0, 1, 0x55)
    twin = make()[1]
    twin.load_state(dma.save_state())
    assert twin.second.channels[1].address == 0x12
    assert twin.pages.pio_read(0, 1) == 0x55
    twin.reset()
    assert twin.pages.pio_read(0, 1) == 0
