"""One way to poke a VGA, and two behind it: ours, and QEMU's."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tests.judges.qemu import IdleQemu

from sublet.devices.vga import TEXT_RAM_SIZE, WINDOW_BASE, Picture, Vga, render
from sublet.hw import PioDevice
from sublet.testing import FakeClock, FakeDeviceRam

VIDEO_MEMORY_SIZE = 16 << 20
_FRAMEBUFFER = 0xC000_0000
_VGA_SLOT = 2


class Adapter(Protocol):
    """What a test does to a VGA. ``address`` is physical; ``offset`` is in the linear framebuffer."""

    def outb(self, port: int, value: int) -> None: ...
    def outw(self, port: int, value: int) -> None: ...
    def inb(self, port: int) -> int: ...
    def inw(self, port: int) -> int: ...
    def writeb(self, address: int, value: int) -> None: ...
    def readb(self, address: int) -> int: ...
    def fill(self, offset: int, data: bytes) -> None: ...
    def memory(self, offset: int, size: int) -> bytes: ...
    def picture(self) -> Picture: ...


class OurVga:
    """The adapter under test, without a machine round it."""

    def __init__(self) -> None:
        self.video_ram = FakeDeviceRam(VIDEO_MEMORY_SIZE)
        self.text_ram = FakeDeviceRam(TEXT_RAM_SIZE)
        self.vga = Vga(self.video_ram, self.text_ram, FakeClock())
        self._ports: dict[int, tuple[PioDevice, int]] = {
            entry.first + i: (entry.device, i) for entry in self.vga.ports() for i in range(entry.count)
        }

    def outb(self, port: int, value: int) -> None:
        device, offset = self._ports[port]
        device.pio_write(offset, 1, value)

    def outw(self, port: int, value: int) -> None:
        device, offset = self._ports[port]
        device.pio_write(offset, 2, value)

    def inb(self, port: int) -> int:
        device, offset = self._ports[port]
        return device.pio_read(offset, 1)

    def inw(self, port: int) -> int:
        device, offset = self._ports[port]
        return device.pio_read(offset, 2)

    def writeb(self, address: int, value: int) -> None:
        self.vga.window.mmio_write(address - WINDOW_BASE, 1, value)

    def readb(self, address: int) -> int:
        return self.vga.window.mmio_read(address - WINDOW_BASE, 1)

    def fill(self, offset: int, data: bytes) -> None:
        self.video_ram.buffer[offset : offset + len(data)] = data

    def memory(self, offset: int, size: int) -> bytes:
        with self.vga.settled():
            return bytes(self.video_ram.buffer[offset : offset + size])

    def picture(self) -> Picture:
        return render(self.vga, blink_on=False)


class QemuVga(IdleQemu):
    """``-vga std`` of an idle QEMU. `close` it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "-vga", "std")
        self._enable()

    def _enable(self) -> None:
        """What firmware does: give BAR 0 an address and let the card decode."""
        for register, value in ((0x10, _FRAMEBUFFER), (0x04, 7)):
            self.ask(f"outl 0xcf8 {0x8000_0000 | _VGA_SLOT << 11 | register:#x}")
            self.ask(f"outl 0xcfc {value:#x}")

    def writeb(self, address: int, value: int) -> None:
        self.ask(f"writeb {address:#x} {value:#x}")

    def readb(self, address: int) -> int:
        return int(self.ask(f"readb {address:#x}"), 16)

    def fill(self, offset: int, data: bytes) -> None:
        self.ask(f"write {_FRAMEBUFFER + offset:#x} {len(data):#x} 0x{data.hex()}")

    def memory(self, offset: int, size: int) -> bytes:
        return bytes.fromhex(self.ask(f"read {_FRAMEBUFFER + offset:#x} {size:#x}")[2:])
