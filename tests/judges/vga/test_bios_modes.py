"""The same boot sector under the same BIOS here and in QEMU: modes of the video BIOS, pixel by pixel.

Text of 40 columns is left out: its characters are 18 dots wide, QEMU 7.2 draws 16.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.judges.our_machine import OurMachine
from tests.judges.qemu import Qemu

from sublet.devices.vga import Picture

MODES = ("03", "04", "06", "0d", "12", "13", "101", "111", "112", "142")
_AGREE_LIMIT_S = 60.0
_KEPT = bytes(value >> 2 for value in range(256))
"""The six bits of a palette; how they are widened to eight is a choice."""

pytestmark = pytest.mark.guest


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk of 1 MiB with the boot sector."""
    if shutil.which("cc") is None:
        pytest.skip("gcc is not installed")
    path, source = tmp_path / "disk.img", Path(__file__).with_name("boot_sector.S")
    link = "-Wl,--oformat=binary,--build-id=none,-Ttext=0x7c00,-z,noexecstack"
    command = ["cc", "-m32", "-nostdlib", "-static", "-no-pie", link, str(source), "-o", str(path)]
    subprocess.run(command, check=True)
    assert path.stat().st_size == 512
    with path.open("r+b") as file:
        file.truncate(1 << 20)
    return path


@pytest.fixture
def pair(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[OurMachine, Qemu]]:
    if shutil.which("pngtopnm") is None:
        pytest.skip("netpbm is not installed")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    copy = shutil.copy(disk, tmp_path / "copy.img")
    qemu = Qemu(tmp_path, "-vga", "std", "-drive", f"file={copy},format=raw")
    options = ["--machine", "pc", "--disk", f"{disk},bus=ide", "--memory", "16M", "--net", "none"]
    ours = OurMachine("modes", options)
    try:
        yield ours, qemu
    finally:
        ours.close()
        qemu.close()


def agree(ours: Picture | None, theirs: Picture) -> bool:
    """Whether both have drawn, and the same."""
    if ours is None or ours[:2] != theirs[:2] or not any(theirs.rgb):
        return False
    return ours.rgb.translate(_KEPT) == theirs.rgb.translate(_KEPT)


def wait_until_both_agree(pair: tuple[OurMachine, Qemu], mode: str, before: Picture | None) -> Picture:
    """Look at both until they show the same, and something else than before."""
    deadline = time.monotonic() + _AGREE_LIMIT_S
    while True:
        ours, theirs = pair[0].picture(), pair[1].picture()
        if theirs != before and agree(ours, theirs):
            return theirs
        if time.monotonic() > deadline:
            sizes = [None if picture is None else picture[:2] for picture in (ours, theirs)]
            pytest.fail(pair[0].report(f"mode {mode}h: ours {sizes[0]}, theirs {sizes[1]}"))
        time.sleep(0.2)


def test_every_mode(pair: tuple[OurMachine, Qemu]) -> None:
    shown: Picture | None = None
    for mode in MODES:
        shown = wait_until_both_agree(pair, mode, shown)
        pair[0].type(" ")
        for down in (True, False):
            pair[1].key("spc", down)
