"""Which drive hangs where, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sublet.devices.storage import AtaDisk, AtapiCd
from sublet.errors import ImageError, UsageError
from sublet.machine import DiskConfig, MachineConfig
from sublet.machine.ata_drives import ata_drives, open_cd
from sublet.machine.disks import Drives, check_buses
from sublet.machine.media import Media


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
    places = ata_drives(pc(files, disks, cds), "ide", Drives(), Media())
    letters = {AtaDisk: "d", AtapiCd: "c", type(None): "-"}
    assert "".join(letters[type(place)] for place in places) == kinds
    for place in places:
        if place is not None:
            place.close()


def test_five_drives_are_too_many(files: list[Path]) -> None:
    with pytest.raises(UsageError, match="3 disks and 2 CD drives"):
        ata_drives(pc(files, 3, 2), "ide", Drives(), Media())


def test_a_disk_may_ask_for_another_bus(files: list[Path]) -> None:
    config = MachineConfig(machine="pc", disks=(DiskConfig(path=files[0], bus="virtio"),))
    assert ata_drives(config, "ide", Drives(), Media()) == [None] * 4
    check_buses(config)


def test_the_microvm_has_no_ide(files: list[Path]) -> None:
    with pytest.raises(UsageError, match="no ide for the disk"):
        check_buses(MachineConfig(disks=(DiskConfig(path=files[0], bus="ide"),)))


def test_ports_of_ahci(files: list[Path]) -> None:
    disks = tuple(DiskConfig(path=path) for path in files[:3])
    config = MachineConfig(machine="q35", disks=disks, cdroms=(files[3],))
    places = ata_drives(config, "ahci", Drives(), Media())
    assert [type(place) for place in places[:4]] == [AtaDisk, AtaDisk, AtapiCd, AtaDisk]
    for place in places:
        if place is not None:
            place.close()


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
