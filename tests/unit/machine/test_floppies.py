"""Floppy images that are taken, and those that are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from sublet.devices.storage import FloppyDrive
from sublet.errors import HostRefused, ImageError
from sublet.machine.floppies import open_floppy


@pytest.mark.parametrize(("size", "kind"), [(368640, 1), (737280, 3), (1228800, 2), (1474560, 4), (512, 4)])
def test_the_kind_of_drive_follows_from_the_disk(tmp_path: Path, size: int, kind: int) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(size))
    drive = FloppyDrive(open_floppy(path))
    assert drive.drive_type == kind
    drive.close()


@pytest.mark.parametrize(("size", "problem"), [(0, "less than one sector"), (4 << 20, "at most 2880 KiB")])
def test_what_is_no_floppy(tmp_path: Path, size: int, problem: str) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(bytes(size))
    with pytest.raises(ImageError, match=problem):
        open_floppy(path)


def test_a_missing_image(tmp_path: Path) -> None:
    with pytest.raises(HostRefused, match=r"a\.img"):
        open_floppy(tmp_path / "a.img")
