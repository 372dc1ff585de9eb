"""Where firmware is looked for, and what a machine lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sublet.errors import HostRefused
from sublet.machine.config import MachineConfig
from sublet.machine.firmware import FOLDERS_VARIABLE, find_image, load_firmware, missing_packages


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for what the host has installed; empty."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.setenv(FOLDERS_VARIABLE, f"{folder}:")
    return folder


@pytest.mark.parametrize(
    ("fields", "packages"),
    [
        ({"machine": "microvm"}, ()),
        ({"machine": "pc"}, ("seabios",)),
        ({"machine": "q35", "firmware": "bios", "boot": ("network",)}, ("seabios", "ipxe-qemu")),
        ({"machine": "q35", "firmware": "uefi"}, ("ovmf",)),
        ({"machine": "pc", "firmware": Path("/my/own.bin")}, ()),
    ],
)
def test_what_is_missing(fields: dict[str, Any], packages: tuple[str, ...]) -> None:
    config = MachineConfig(**fields)
    assert missing_packages(config) == packages


def test_what_is_installed_comes_first(installed: Path, tmp_path: Path) -> None:
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    config = MachineConfig(machine="pc", firmware_folders=(fetched,))
    for name in ("bios-256k.bin", "vgabios-stdvga.bin"):
        (fetched / name).write_bytes(b"\1" * 0x10000)
    assert missing_packages(config) == ()
    assert load_firmware(config).path.parent == fetched
    (installed / "bios-256k.bin").write_bytes(b"\2" * 0x10000)
    assert load_firmware(config).path.parent == installed


def test_nothing_anywhere() -> None:
    assert find_image(("bios.bin",)) is None
    with pytest.raises(HostRefused, match="no BIOS"):
        load_firmware(MachineConfig(machine="pc"))
