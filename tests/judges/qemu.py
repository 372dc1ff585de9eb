"""A QEMU with a monitor, and one whose processor halts at once, poked through its test protocol.

Reference: QEMU docs/devel/qtest.rst (7.2) "QTest Protocol"; docs/interop/qmp-spec.txt.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sublet.devices.vga import Picture

QEMU = "qemu-system-x86_64"
_ANSWER_LIMIT_S = 20.0
_HALT = b"\xfa\xf4\xeb\xfd"
"""cli; again: hlt; jmp again."""


class Qemu:
    """The ``pc`` machine with what ``arguments`` add to it. `close` it. Skips the test without QEMU."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        qemu = shutil.which(QEMU)
        if qemu is None:
            pytest.skip(f"{QEMU} is not installed")
        listener = listen(directory / "qmp")
        self._process = subprocess.Popen(
            [
                *(qemu, "-M", "pc", "-accel", "tcg", "-m", "16", "-display", "none", "-nodefaults"),
                *("-qmp", f"unix:{directory}/qmp", *arguments),
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._dump = directory / "screen.ppm"
        self._qmp = accept(listener)
        self._qmp_lines = self._qmp.makefile("r")
        self._qmp_lines.readline()
        self.execute("qmp_capabilities")

    def close(self) -> None:
        """End QEMU."""
        self._process.kill()
        self._process.wait()
        self._qmp.close()

    def execute(self, command: str, **arguments: Any) -> None:
        """A command of the monitor."""
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        answer = json.loads(self._qmp_lines.readline())
        while "event" in answer:
            answer = json.loads(self._qmp_lines.readline())
        assert "return" in answer, answer

    def picture(self) -> Picture:
        """What is on the screen."""
        self.execute("screendump", filename=str(self._dump))
        magic, size, _depth, rgb = self._dump.read_bytes().split(b"\n", 3)
        assert magic == b"P6"
        width, height = map(int, size.split())
        return Picture(width, height, rgb)

    def key(self, qcode: str, down: bool) -> None:
        """Push a key, by QEMU's name, or let it go."""
        event = {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": qcode}}}
        self.execute("input-send-event", events=[event])


class IdleQemu(Qemu):
    """A machine that does nothing of its own."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        firmware = directory / "halt.bin"
        firmware.write_bytes(bytes(0xFFF0) + _HALT.ljust(16, b"\0"))
        listener = listen(directory / "qtest")
        super().__init__(directory, "-qtest", f"unix:{directory}/qtest", "-bios", str(firmware), *arguments)
        self._qtest = accept(listener)
        self._qtest_lines = self._qtest.makefile("r")

    def close(self) -> None:
        """End QEMU."""
        super().close()
        self._qtest.close()

    def ask(self, command: str) -> str:
        """A command of the test protocol; its value, or nothing."""
        self._qtest.sendall(command.encode() + b"\n")
        answer = self._qtest_lines.readline().split()
        while answer and answer[0] == "IRQ":
            answer = self._qtest_lines.readline().split()
        assert answer[:1] == ["OK"], f"{command}: {answer}"
        return answer[1] if len(answer) > 1 else ""

    def outb(self, port: int, value: int) -> None:
        """Write a byte to a port."""
        self.ask(f"outb {port:#x} {value:#x}")

    def outw(self, port: int, value: int) -> None:
        """Write 16 bits to a port."""
        self.ask(f"outw {port:#x} {value:#x}")

    def inb(self, port: int) -> int:
        """Read a byte from a port."""
        return int(self.ask(f"inb {port:#x}"), 16)

    def inw(self, port: int) -> int:
        """Read 16 bits from a port."""
        return int(self.ask(f"inw {port:#x}"), 16)


def listen(path: Path) -> socket.socket:
    """A Unix socket for one connection."""
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(_ANSWER_LIMIT_S)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def accept(listener: socket.socket) -> socket.socket:
    """That connection."""
    with listener:
        connection, _ = listener.accept()
    connection.settimeout(_ANSWER_LIMIT_S)
    return connection
