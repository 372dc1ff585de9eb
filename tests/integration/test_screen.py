"""The screen of the machine pc: in a terminal, and for other commands."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from tests.integration.conftest import StartGuest

from sublet.machine.firmware import find_image

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(find_image(("bios-256k.bin",)) is None, reason="seabios is not installed"),
]

NO_DISK = "No bootable device"
SCREEN_BACK = b"\x1b[?1049l"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with nothing to boot."""
    path = tmp_path / "empty.img"
    path.write_bytes(bytes(1 << 20))
    return path


def arguments(disk: Path, *more: str) -> list[str]:
    return ["--machine", "pc", "--disk", str(disk), "--memory", "32M", "--net", "none", *more]


def sublet(*words: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(directory)}
    command = [sys.executable, "-m", "sublet", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_screen_in_the_terminal(start_guest: StartGuest, disk: Path) -> None:
    guest = start_guest(*arguments(disk, "--console", "vga"), terminal=True)
    assert guest.terminal is not None
    before = termios.tcgetattr(guest.terminal)
    guest.expect(NO_DISK)
    guest.type("a\x1b[A\x1d")
    assert guest.process.wait(30) == 130
    assert termios.tcgetattr(guest.terminal) == before
    assert SCREEN_BACK in guest.output[-40:]


def test_other_commands_see_and_type(start_guest: StartGuest, disk: Path, tmp_path: Path) -> None:
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    guest = start_guest(*arguments(disk, "--name", "looked-at"), environment=runtime)
    guest.expect(NO_DISK)
    text = sublet("screenshot", "looked-at", "--text", directory=tmp_path)
    assert NO_DISK in text.stdout, text.stderr
    picture = tmp_path / "screen.png"
    assert sublet("screenshot", "looked-at", str(picture), directory=tmp_path).returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sublet("type", "looked-at", "{f2}{ctrl-alt-delete}", directory=tmp_path).returncode == 0
    guest.expect("SeaBIOS")  # again: the BIOS resets the machine
    wrong = sublet("type", "looked-at", "{nokey}", directory=tmp_path)
    assert wrong.returncode == 2
    assert "nokey" in wrong.stderr


def test_without_a_terminal_it_is_refused(disk: Path, tmp_path: Path) -> None:
    refused = sublet("run", *arguments(disk, "--console", "vga"), directory=tmp_path)
    assert refused.returncode == 2
    assert "needs a terminal" in refused.stderr


def test_a_microvm_has_no_screen(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"none")
    refused = sublet("run", "--kernel", str(kernel), "--console", "vga", directory=tmp_path)
    assert refused.returncode == 2
    assert "no screen" in refused.stderr


def test_a_machine_that_nobody_runs(tmp_path: Path) -> None:
    refused = sublet("screenshot", "nobody", "--text", directory=tmp_path)
    assert refused.returncode == 2
    assert "nobody" in refused.stderr
