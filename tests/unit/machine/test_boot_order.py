"""The order of devices that firmware is given, by name (`sublet.machine.boot_order`)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sublet.errors import UsageError
from sublet.machine.boot_order import boot_paths
from sublet.machine.config import DiskConfig, MachineConfig

FIRST_DISK, SECOND_DISK = "/pci@i0cf8/ide@1,1/drive@0/disk@0", "/pci@i0cf8/ide@1,1/drive@0/disk@1"
CD, FLOPPY = "/pci@i0cf8/ide@1,1/drive@1/disk@0", "/pci@i0cf8/isa@1/fdc@03f0/floppy@0"


def paths(firmware: str, *boot: Any) -> list[str]:
    """Of a `pc` with two disks, a CD and a floppy."""
    disks = tuple(DiskConfig(path=Path(f"/d{number}")) for number in (1, 2))
    drives: dict[str, Any] = {"disks": disks, "cdroms": (Path("/cd"),), "floppies": (Path("/floppy"),)}
    config = MachineConfig(machine="pc", firmware=firmware, boot=boot, **drives)
    return boot_paths(SimpleNamespace(config=config), [])  # type: ignore[arg-type]


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_without_an_order_firmware_has_its_own(firmware: str) -> None:
    assert paths(firmware) == []


def test_the_bios_is_told_kinds_elsewhere() -> None:
    assert paths("bios", "cdrom") == []
    assert paths("bios", "disk:2") == [SECOND_DISK]


def test_uefi_is_told_kinds_by_name_and_keeps_the_rest() -> None:
    assert paths("uefi", "cdrom") == [CD, FIRST_DISK, SECOND_DISK, FLOPPY]
    assert paths("uefi", "disk:2", "floppy") == [SECOND_DISK, FLOPPY, FIRST_DISK, CD]


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="disk:3: there is no such device"):
        paths("uefi", "disk:3")


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_an_order_that_names_no_device_of_the_machine(firmware: str) -> None:
    with pytest.raises(UsageError, match="--boot network: this machine has no such device") as refused:
        paths(firmware, "network")
    assert refused.value.remedy == "This machine has disk, cdrom, floppy."
    assert paths(firmware, "network", "cdrom") == ([] if firmware == "bios" else paths("uefi", "cdrom"))
