"""A driver of one IDE channel, as the ATA and bus-master specifications tell a driver to work."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from sublet.devices.storage import PiixIde
from sublet.devices.storage.taskfile import Drive
from sublet.hw import Executor, ReadAhead
from sublet.testing import FakeGuestMemory, InlineExecutor, RecordingIrqLine

TABLE = 0x1000
BUFFER = 0x10000


class IdeDriver:
    """Ports of the first channel."""

    def __init__(
        self,
        *drives: Drive | None,
        executor: Executor | None = None,
        data_ports: Sequence[ReadAhead] = (),
    ) -> None:
        self.memory = FakeGuestMemory(1 << 20)
        self.irqs = [RecordingIrqLine(), RecordingIrqLine()]
        self.function = PiixIde(
            drives, self.irqs, self.memory, executor or InlineExecutor(), data_ports=data_ports
        )
        self.channel = self.function.channels[0]
        self.irq = self.irqs[0]

    def port(self, offset: int) -> int:
        return self.channel.pio_read(offset, 1)

    def set_port(self, offset: int, value: int) -> None:
        self.channel.pio_write(offset, 1, value)

    def alternate_status(self) -> int:
        return self.channel.control.pio_read(0, 1)

    def set_control(self, value: int) -> None:
        self.channel.control.pio_write(0, 1, value)

    def reset(self) -> None:
        self.set_control(4)
        self.set_control(0)

    def signature(self, device: int = 0) -> tuple[int, ...]:
        """Count, LBA low, mid, high of a device."""
        self.set_port(6, device << 4)
        return tuple(self.port(offset) for offset in (2, 3, 4, 5))

    def command(
        self, command: int, *, lba: int = 0, count: int = 0, feature: int = 0, device: int = 0xE0
    ) -> int:
        """A 28-bit command; returns the alternate status right after it."""
        self.set_port(6, device | lba >> 24 & 15)
        for offset, value in ((1, feature), (2, count), (3, lba), (4, lba >> 8), (5, lba >> 16)):
            self.set_port(offset, value & 0xFF)
        self.set_port(7, command)
        return self.alternate_status()

    def command_ext(self, command: int, *, lba: int = 0, count: int = 0, feature: int = 0) -> int:
        """A 48-bit command: the older bytes are written first."""
        self.set_port(6, 0xE0)
        for offset, value in (
            (1, feature >> 8),
            (2, count >> 8),
            (3, lba >> 24),
            (4, lba >> 32),
            (5, lba >> 40),
        ):
            self.set_port(offset, value & 0xFF)
        for offset, value in ((1, feature), (2, count), (3, lba), (4, lba >> 8), (5, lba >> 16)):
            self.set_port(offset, value & 0xFF)
        self.set_port(7, command)
        return self.alternate_status()

    def read_block(self, size: int = 512) -> bytes:
        """Read the data port while DRQ asks for it."""
        assert self.alternate_status() & 0x88 == 0x08
        words = [self.channel.pio_read(0, 2) for _ in range(size // 2)]
        return struct.pack(f"<{len(words)}H", *words)

    def write_block(self, data: bytes) -> None:
        """Write the data port while DRQ asks for it."""
        assert self.alternate_status() & 0x88 == 0x08
        for (word,) in struct.iter_unpack("<H", data):
            self.channel.pio_write(0, 2, word)

    # Bus master

    def set_table(self, *regions: tuple[int, int], last: bool = True) -> None:
        """Write a table of (address, bytes) and point the bus master at it."""
        for index, (address, size) in enumerate(regions):
            end = 0x8000 if last and index == len(regions) - 1 else 0
            self.memory.write(TABLE + 8 * index, struct.pack("<IHH", address, size & 0xFFFF, end))
        self.function.pio_write(4, 4, TABLE)

    def start_dma(self, *, to_memory: bool) -> None:
        self.function.pio_write(0, 1, (8 if to_memory else 0) | 1)

    def stop_dma(self) -> None:
        self.function.pio_write(0, 1, 0)

    def dma_status(self) -> int:
        return self.function.pio_read(2, 1)
