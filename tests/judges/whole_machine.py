"""The machine `pc` with QEMU's exit device, for those of kvm-unit-tests that want ACPI tables or an HPET.

GRUB starts the kernel from a CD, by Multiboot; SeaBIOS is there to wake it from S3.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from unittest import mock

from sublet.machine import boards
from sublet.machine.config import MachineConfig
from sublet.machine.pc import Pc
from sublet.machine.run import run_machine
from sublet.machine.runloop import EndMachine, Request
from sublet.machine.screen import Screen

_EXIT_PORT, _EXIT_PORTS = 0xF4, 4
_MEMORY_MIB: Final = 128
_GRUB: Final = """\
serial
terminal_output serial
set timeout=0
multiboot /kernel {arguments}
boot
"""


class ExitDevice:
    """isa-debug-exit: what is written ends the machine with that code (QEMU 10.0 hw/misc/debugexit.c)."""

    code: int | None = None

    def __init__(self, end: EndMachine) -> None:
        self._end = end

    def pio_read(self, offset: int, size: int) -> int:
        """Nothing is there to read."""
        return 0

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Keep the code and end the machine."""
        ExitDevice.code = value
        self._end(Request.POWEROFF, None)


class JudgedPc(Pc):
    """A `pc` that has it."""

    def plug_chipset(self) -> None:
        """The chipset, and the device beside it."""
        super().plug_chipset()
        self.buses.ports.add(_EXIT_PORT, _EXIT_PORTS, ExitDevice(self.end))


class Collector:
    """A console that keeps what the machine prints."""

    def __init__(self) -> None:
        self.output = bytearray()

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.output += data

    def start(self, on_input: Callable[[bytes], int]) -> None:
        """There is no input."""

    def show(self, screen: Screen | None) -> None:
        """The screen is not looked at."""

    def stop(self) -> None:
        """Nothing to end."""


def run_on_pc(engine: str, cpus: int, kernel: Path, arguments: str, limit_s: float) -> dict[str, Any]:
    """Boot ``kernel``; returns the fields of `multiboot_machine.Outcome`. On the main thread."""
    console, start = Collector(), time.monotonic()
    leave = threading.Timer(limit_s, os.kill, (os.getpid(), signal.SIGINT))
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(boards._BOARDS, {"pc": JudgedPc}):
        drives: dict[str, Any] = {"cdroms": (_make_cd(Path(folder), kernel, arguments),), "boot": ("cdrom",)}
        config = MachineConfig(
            machine="pc", firmware="bios", engine=engine, cpus=cpus, memory_mib=_MEMORY_MIB, **drives
        )
        leave.start()
        result = run_machine(config, console)
        leave.cancel()
    output = console.output.decode(errors="replace")
    seconds = time.monotonic() - start
    return {"code": ExitDevice.code, "why": result.reason, "output": output, "seconds": seconds}


def _make_cd(folder: Path, kernel: Path, arguments: str) -> Path:
    tree, iso = folder / "tree", folder / "cd.iso"
    (tree / "boot" / "grub").mkdir(parents=True)
    (tree / "kernel").write_bytes(kernel.read_bytes())
    (tree / "boot" / "grub" / "grub.cfg").write_text(_GRUB.format(arguments=arguments))
    command = ["grub-mkrescue", "-d", "/usr/lib/grub/i386-pc", "-o", str(iso), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    return iso
