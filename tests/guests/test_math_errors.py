"""x87 errors by IRQ 13, as programs and systems from before CR0.NE take them; QEMU's machines judge."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from tests.guests.conftest import StartGuest
from tests.judges.qemu import QEMU

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

SOURCE = Path(__file__).with_name("math_error.S")
PRINTED = ["N84", "R84", "P84", "."]
MACHINES = pytest.mark.parametrize("machine", ["pc", "q35"])


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk of 1 MiB with the boot sector."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    disk = tmp_path / "disk.raw"
    link = "-Wl,--oformat=binary,--build-id=none,-Ttext=0x7c00,-z,noexecstack,-e,start"
    command = ["gcc", "-m32", "-nostdlib", "-static", "-no-pie", link, str(SOURCE), "-o", str(disk)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    disk.write_bytes(disk.read_bytes()[:512].ljust(1 << 20, b"\0"))
    return disk


def lines(output: bytes) -> list[str]:
    """What the boot sector printed, after what the BIOS did."""
    return output.decode(errors="replace").split("\n")[-len(PRINTED) - 1 : -1]


@MACHINES
def test_errors_interrupt(start_guest: StartGuest, disk: Path, machine: str) -> None:
    words = ("--machine", machine, "--firmware", "bios", "--memory", "32M", "--net", "none")
    guest = start_guest(*words, "--engine", "translate", "--disk", str(disk))
    assert guest.wait() == 0, guest.report("no power-off")
    assert lines(guest.output) == PRINTED


@MACHINES
def test_qemu_agrees(disk: Path, machine: str) -> None:
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed")
    command = [QEMU, "-M", machine, "-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none"]
    command += ["-serial", "stdio", "-drive", f"file={disk},format=raw"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    if ended.returncode == -signal.SIGABRT:
        pytest.skip("this QEMU ends itself at x87 errors, as 7.2 does")
    assert lines(ended.stdout) == PRINTED
