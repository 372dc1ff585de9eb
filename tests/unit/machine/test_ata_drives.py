"""Which drive hangs where, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sublet.devices.storage import AtaDisk, AtapiCd
from sublet.errors import ImageError, UsageError
from sublet.machine import DiskConfig, MachineConfig
from sublet.machine.ata_drives import check_virtio_only, ide_drives, open_cd
from sublet.machine.disks import Drives


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{index}.img" for index in range(5)]
    for path in paths:
        path.write_bytes(bytes(1 << 16))
    return paths


def pc(files: list[Path], disks: int, cds: int) -> MachineConfig:
    return MachineConfig(
        machine="pc",
        disks=tuple(DiskConfig(path=path) for path in files[:disks]),
        cdroms=tuple(files[disks : disks + cds]),
    )


@pytest.mark.parametrize(
    ("disks", "cds", "kinds"),
    [(1, 1, "d-c-"), (2, 2, "ddcc"), (3, 1, "ddcd"), (4, 0, "dddd"), (0, 3, "-ccc")],
)
def test_places_on_the_cables(files: list[Path], disks: int, cds: int, kinds: str) -> None:
    places = ide_drives(pc(files, disks, cds), Drives())
    letters = {AtaDisk: "d", AtapiCd: "c", type(None): "-"}
    assert "".join(letters[type(place)] for place in places) == kinds
    for place in places:
        if place is not None:
            place.close()


def test_five_drives_are_too_many(files: list[Path]) -> None:
    with pytest.raises(UsageError, match="3 disks and 2 CD drives"):
        ide_drives(pc(files, 3, 2), Drives())


def test_a_disk_may_ask_for_another_bus(files: list[Path]) -> None:
    config = MachineConfig(machine="pc", disks=(DiskConfig(path=files[0], bus="virtio"),))
    assert ide_drives(config, Drives()) == [None] * 4
    check_virtio_only(config)


def test_the_microvm_has_no_ide(files: list[Path]) -> None:
    with pytest.raises(UsageError, match="no ide for the disk"):
        check_virtio_only(MachineConfig(disks=(DiskConfig(path=files[0], bus="ide"),)))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (bytes(512), "less than one sector"),
        (b"\0" + b"\xff" * 10 + b"\0" + bytes(2340), "2352 bytes"),
    ],
)
def test_what_is_no_cd(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "a.iso"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=problem):
        open_cd(path)
