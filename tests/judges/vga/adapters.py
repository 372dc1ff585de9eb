"""One way to poke a VGA, and two behind it: ours, and QEMU's through its test protocol.

Reference: QEMU docs/devel/qtest.rst (7.2) "QTest Protocol"; docs/interop/qmp-spec.txt.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any, Protocol

import pytest

from sublet.devices.vga import TEXT_RAM_SIZE, WINDOW_BASE, Picture, Vga, render
from sublet.hw import PioDevice
from sublet.testing import FakeClock, FakeDeviceRam

QEMU = "qemu-system-x86_64"
VIDEO_MEMORY_SIZE = 16 << 20
_FRAMEBUFFER = 0xC000_0000
_VGA_SLOT = 2
_ANSWER_LIMIT_S = 20.0


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


class QemuVga:
    """``-vga std`` of a QEMU that executes nothing. `close` it."""

    def __init__(self, directory: Path) -> None:
        qemu = shutil.which(QEMU)
        if qemu is None:
            pytest.skip(f"{QEMU} is not installed")
        self._dump = directory / "screen.ppm"
        listeners = [_listen(directory / name) for name in ("qtest", "qmp")]
        self._process = subprocess.Popen(
            [
                *(
                    qemu,
                    "-M",
                    "pc",
                    "-accel",
                    "tcg",
                    "-S",
                    "-m",
                    "16",
                    "-display",
                    "none",
                    "-vga",
                    "std",
                    "-nodefaults",
                ),
                *("-qtest", f"unix:{directory}/qtest", "-qmp", f"unix:{directory}/qmp"),
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._qtest, self._qmp = (_accept(listener) for listener in listeners)
        self._qtest_lines, self._qmp_lines = self._qtest.makefile("r"), self._qmp.makefile("r")
        self._qmp_lines.readline()
        self._execute("qmp_capabilities")
        self._enable()

    def close(self) -> None:
        """End QEMU."""
        self._process.kill()
        self._process.wait()
        self._qtest.close()
        self._qmp.close()

    def _enable(self) -> None:
        """What firmware does: give BAR 0 an address and let the card decode."""
        for register, value in ((0x10, _FRAMEBUFFER), (0x04, 7)):
            self._ask(f"outl 0xcf8 {0x8000_0000 | _VGA_SLOT << 11 | register:#x}")
            self._ask(f"outl 0xcfc {value:#x}")

    def _ask(self, command: str) -> str:
        self._qtest.sendall(command.encode() + b"\n")
        answer = self._qtest_lines.readline().split()
        while answer and answer[0] == "IRQ":
            answer = self._qtest_lines.readline().split()
        assert answer[:1] == ["OK"], f"{command}: {answer}"
        return answer[1] if len(answer) > 1 else ""

    def _execute(self, command: str, **arguments: Any) -> None:
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        answer = json.loads(self._qmp_lines.readline())
        while "event" in answer:
            answer = json.loads(self._qmp_lines.readline())
        assert "return" in answer, answer

    def outb(self, port: int, value: int) -> None:
        self._ask(f"outb {port:#x} {value:#x}")

    def outw(self, port: int, value: int) -> None:
        self._ask(f"outw {port:#x} {value:#x}")

    def inb(self, port: int) -> int:
        return int(self._ask(f"inb {port:#x}"), 16)

    def inw(self, port: int) -> int:
        return int(self._ask(f"inw {port:#x}"), 16)

    def writeb(self, address: int, value: int) -> None:
        self._ask(f"writeb {address:#x} {value:#x}")

    def readb(self, address: int) -> int:
        return int(self._ask(f"readb {address:#x}"), 16)

    def fill(self, offset: int, data: bytes) -> None:
        self._ask(f"write {_FRAMEBUFFER + offset:#x} {len(data):#x} 0x{data.hex()}")

    def memory(self, offset: int, size: int) -> bytes:
        return bytes.fromhex(self._ask(f"read {_FRAMEBUFFER + offset:#x} {size:#x}")[2:])

    def picture(self) -> Picture:
        self._execute("screendump", filename=str(self._dump))
        magic, size, _depth, rgb = self._dump.read_bytes().split(b"\n", 3)
        assert magic == b"P6"
        width, height = map(int, size.split())
        return Picture(width, height, rgb)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(_ANSWER_LIMIT_S)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _accept(listener: socket.socket) -> socket.socket:
    with listener:
        connection, _ = listener.accept()
    connection.settimeout(_ANSWER_LIMIT_S)
    return connection
