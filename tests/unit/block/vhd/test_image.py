"""VHD images: what is particular to the format. Reading and writing is in tests/conformance/block."""

from __future__ import annotations

from pathlib import Path

import pytest

from sublet.block import create_image, open_image
from sublet.block.description import BackingReference
from sublet.block.vhd.layout import DynamicHeader, Footer
from sublet.errors import CorruptImage, HostRefused, ImageError, UsageError, WrongMoment

MIB = 1 << 20
OPTIONS = {"block_size": "64K"}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.vhd"
    create_image(path, 4 * MIB, format="vhd", options=OPTIONS)
    with open_image(path) as image:
        image.write(MIB, b"held" * 30000)
    return path


def change(path: Path, offset: int, data: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset % len(raw) : offset % len(raw) + len(data)] = data
    path.write_bytes(raw)


def child_of(disk: Path) -> Path:
    child = disk.parent / "child.vhd"
    create_image(child, None, format="vhd", options=OPTIONS, backing=disk)
    return child


def test_a_lost_last_footer_is_restored(disk: Path) -> None:
    change(disk, -512, bytes(512))
    with open_image(disk, format="vhd", readonly=True) as image:
        report = image.check()
        assert (report.errors, report.leaks) == (0, 1)
    with open_image(disk, format="vhd") as image:
        assert image.read(MIB, 4) == b"held"
    assert Footer.parse(disk.read_bytes()[-512:]).disk_size == 4 * MIB


def test_a_damaged_copy_of_the_footer_is_repaired(disk: Path) -> None:
    change(disk, 70, b"damage")
    with open_image(disk, check=True) as image:
        assert image.check().leaks == 1
        assert image.check(repair=True).clean
        assert image.check().leaks == 0


def test_both_footers_damaged_is_refused(disk: Path) -> None:
    change(disk, 70, b"damage")
    change(disk, -100, b"damage")
    with pytest.raises(CorruptImage, match="checksum"):
        open_image(disk)


def test_a_block_outside_the_file_is_an_error_that_is_named(disk: Path) -> None:
    header = DynamicHeader.parse(disk.read_bytes()[512:1536])
    change(disk, header.table_offset, (0x1000_0000).to_bytes(4, "big"))
    with open_image(disk, check=True) as image:
        with pytest.raises(CorruptImage, match="block 0"):
            image.read(0, 512)
        assert image.check().errors == 1
        assert image.check(repair=True).clean
        assert image.read(0, 512) == bytes(512)


def test_blocks_that_share_storage_are_errors(disk: Path) -> None:
    table = DynamicHeader.parse(disk.read_bytes()[512:1536]).table_offset
    entry = disk.read_bytes()[table + 4 * 16 : table + 4 * 17]
    change(disk, table, entry)
    with open_image(disk, check=True) as image:
        assert image.check().errors == 1


def test_a_table_outside_the_file_is_refused(disk: Path) -> None:
    header = DynamicHeader.parse(disk.read_bytes()[512:1536])
    change(disk, 512, header.at_table(1 << 40, 64).pack())
    with pytest.raises(CorruptImage, match="table offset"):
        open_image(disk)


def test_a_table_that_is_too_short_is_refused(disk: Path) -> None:
    header = DynamicHeader.parse(disk.read_bytes()[512:1536])
    change(disk, 512, header.at_table(header.table_offset, 5).pack())
    with pytest.raises(CorruptImage, match="max table entries"):
        open_image(disk)


def test_a_fixed_disk_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fixed.vhd"
    create_image(path, MIB, format="vhd", options={"subformat": "fixed"})
    path.write_bytes(path.read_bytes()[-512:])
    with pytest.raises(CorruptImage, match="the file has fewer"):
        open_image(path)


def test_growing_moves_the_table_behind_the_data(disk: Path) -> None:
    with open_image(disk) as image:
        image.resize(400 * MIB)
        image.write(399 * MIB, b"end")
    with open_image(disk) as image:
        assert image.read(MIB, 4) == b"held"
        assert image.read(399 * MIB, 3) == b"end"
        assert not image.check().errors


def test_a_disk_is_at_most_2040_gib(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2040 GiB"):
        create_image(tmp_path / "big.vhd", 2041 << 30, format="vhd")
    assert not (tmp_path / "big.vhd").exists()


def test_freed_storage_is_used_again(disk: Path) -> None:
    size = disk.stat().st_size
    with open_image(disk) as image:
        image.write_zeroes(MIB, 65536)
        image.flush()
        image.write(0, b"new")
    assert disk.stat().st_size == size


def test_a_child_reads_through_to_its_parent(disk: Path) -> None:
    child = child_of(disk)
    with open_image(child) as image:
        assert image.info().backing == BackingReference("disk.vhd", "vhd")
        image.write(MIB + 1, b"x")
        assert image.read(MIB, 4) == b"hxld"
        assert image.map(MIB + 4096, 512).depth == 1
    with open_image(disk, readonly=True) as parent:
        assert parent.read(MIB, 4) == b"held"


def test_another_disk_at_the_parents_place_is_refused(disk: Path) -> None:
    child = child_of(disk)
    disk.unlink()
    create_image(disk, 4 * MIB, format="vhd")
    with pytest.raises(ImageError, match="id"):
        open_image(child)


def test_a_missing_parent_is_named(disk: Path) -> None:
    child = child_of(disk)
    disk.unlink()
    with pytest.raises(ImageError, match="needs its parent"):
        open_image(child)


def test_a_child_can_move_to_another_parent_and_to_none(disk: Path) -> None:
    child, copy = child_of(disk), disk.parent / "copy.vhd"
    copy.write_bytes(disk.read_bytes())
    with open_image(child) as image:
        image.write(0, b"own")
        image.set_backing(BackingReference("copy.vhd", "vhd"))
    disk.unlink()
    with open_image(child) as image:
        assert image.read(MIB, 4) == b"held"
        image.set_backing(None)
        assert image.read(MIB, 4) == bytes(4)
    with open_image(child) as image:
        assert image.backing is None
        assert image.read(0, 3) == b"own"
        assert not image.check().errors


def test_a_locator_outside_the_file_is_refused(disk: Path) -> None:
    child = child_of(disk)
    raw = bytearray(child.read_bytes())
    start = raw.index(b"W2ru")
    raw[start + 16 : start + 24] = (1 << 40).to_bytes(8, "big")
    raw[512 + 36 : 512 + 40] = bytes(4)
    total = ~sum(raw[512:1536]) & 0xFFFF_FFFF
    raw[512 + 36 : 512 + 40] = total.to_bytes(4, "big")
    child.write_bytes(raw)
    with pytest.raises(CorruptImage, match="W2ru"):
        open_image(child)


def test_read_only_images_are_not_touched(disk: Path) -> None:
    before = disk.read_bytes()
    with open_image(disk, readonly=True) as image:
        with pytest.raises(WrongMoment):
            image.write(0, b"x")
    assert disk.read_bytes() == before


@pytest.mark.parametrize("options", [{"subformat": "odd"}, {"block_size": "3M"}, {"colour": "red"}])
def test_bad_options_leave_no_file(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        create_image(tmp_path / "bad.vhd", MIB, format="vhd", options=options)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays(disk: Path) -> None:
    before = disk.read_bytes()
    with pytest.raises(HostRefused):
        create_image(disk, MIB, format="vhd")
    assert disk.read_bytes() == before
