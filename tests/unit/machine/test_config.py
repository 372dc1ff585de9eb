"""What a machine's definition refuses by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sublet.errors import UsageError
from sublet.machine import DiskConfig, MachineConfig


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"machine": "vax"}, "machine: 'vax' is none of microvm, pc, q35"),
        ({"engine": "xen"}, "engine"),
        ({"firmware": "coreboot"}, "firmware"),
        ({"virtio": "old"}, "virtio: 'old' is none of transitional, modern"),
        ({"boot": ("disk", "tape")}, "boot: 'tape'"),
        ({"boot": ("disk:0",)}, "boot: 'disk:0'"),
        ({"floppies": (None, None, None)}, "3 floppy drives"),
    ],
)
def test_machines(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        MachineConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"cache": "fast"}, "cache: 'fast' is none of writeback, "),
        ({"bus": "scsi"}, "bus"),
        ({"serial": "s" * 21}, "more than 20 characters"),
        ({"iops": -1}, "iops: -1"),
        ({"bytes_per_second": -1}, "bps: -1"),
    ],
)
def test_disks(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        DiskConfig(path=Path("a.img"), **fields)


def test_what_is_possible() -> None:
    disk = DiskConfig(path=Path("a.img"), serial="s" * 20)
    config = MachineConfig(machine="q35", firmware=Path("my.bin"), boot=("disk:2", "cdrom"), disks=(disk,))
    assert (config.bus_of(disk), config.is_uefi, config.boot_kinds) == ("ahci", False, ("disk", "cdrom"))
