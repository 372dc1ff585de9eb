"""Kernels of our own making, entered as the Multiboot specifications say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.guests.conftest import StartGuest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

SOURCE = Path(__file__).with_name("multiboot.S")


def build(version: int, folder: Path) -> Path:
    """An ELF32 kernel at 1 MiB."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    kernel = folder / "kernel.elf"
    command = ["gcc", "-m32", "-nostdlib", "-static", "-no-pie", f"-DVERSION={version}"]
    command += ["-Wl,-Ttext=0x100000,--build-id=none,-n", "-o", str(kernel), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return kernel


@pytest.mark.parametrize("machine", ["microvm", "pc", "q35"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_kernel_is_told_its_command_line_and_module(
    start_guest: StartGuest, tmp_path: Path, version: int, machine: str
) -> None:
    (tmp_path / "data").write_bytes(b"what the module holds\0")
    kernel = build(version, tmp_path)
    module = f"{tmp_path / 'data'} for you"
    words = ("--kernel", str(kernel), "--append", "a=1", "--module", module, "--memory", "16M")
    guest = start_guest("--machine", machine, "--net", "none", *words)
    assert guest.wait() == 0, guest.report("another exit code")
    told = [b"kernel.elf a=1", b"data for you", b"what the module holds", b"memory 639", b"end"]
    assert guest.output.endswith(b"\n".join((*told, b"")))
