"""VMDK disks of every kind: reading, writing, parents, resizing and descriptors."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.block.vmdk.conftest import Shelf

from sublet.block import create_image, open_image
from sublet.block.contract import BlockStatus
from sublet.block.description import BackingReference
from sublet.block.vmdk import VmdkImage
from sublet.block.vmdk.build import SPLIT_SECTORS
from sublet.errors import CorruptImage, HostRefused, ImageError, UnsupportedImage, UsageError

GRAIN = 65536
SPARSE = ("monolithicSparse", "twoGbMaxExtentSparse", "vmfsSparse")
FLAT = ("monolithicFlat", "twoGbMaxExtentFlat", "vmfs")
ALL = (*SPARSE, *FLAT, "streamOptimized")


@pytest.mark.parametrize("kind", ALL)
def test_written_bytes_are_there_after_reopening(shelf: Shelf, kind: str) -> None:
    size = 5 * GRAIN + 512
    shelf.create(size, subformat=kind)
    with shelf.open() as disk:
        assert disk.read(0, size) == bytes(size)
        disk.write(GRAIN - 100, b"a" * 200)
        disk.write(size - 512, b"z" * 512)
        disk.write_zeroes(GRAIN, 50)
    expected = bytearray(size)
    expected[GRAIN - 100 : GRAIN + 100] = b"a" * 100 + bytes(50) + b"a" * 50
    expected[-512:] = b"z" * 512
    with shelf.open(readonly=True) as disk:
        assert disk.read(0, size) == expected
        assert disk.check().clean


@pytest.mark.parametrize("kind", ALL)
def test_a_disk_of_no_bytes_opens(shelf: Shelf, kind: str) -> None:
    shelf.create(0, subformat=kind)
    with shelf.open() as disk:
        assert disk.size == 0
        assert disk.check().clean


def test_split_disks_have_extents_of_2047_mib(shelf: Shelf) -> None:
    shelf.create(SPLIT_SECTORS * 512 + 5 * GRAIN, subformat="twoGbMaxExtentSparse")
    border = SPLIT_SECTORS * 512
    with shelf.open() as disk:
        disk.write(border - 512, b"b" * 1024)
        assert disk.read(border - 1024, 2048) == bytes(512) + b"b" * 1024 + bytes(512)
        assert disk.check().clean
    assert sorted(path.name for path in shelf.files.content) == [
        "disk-s001.vmdk",
        "disk-s002.vmdk",
        "disk.vmdk",
    ]


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_disks_store_what_was_written(shelf: Shelf, kind: str) -> None:
    shelf.create(100 * GRAIN, subformat=kind)
    with shelf.open() as disk:
        disk.write(7 * GRAIN, b"x" * GRAIN)
        first = disk.map(0, disk.size)
        second = disk.map(first.size, disk.size - first.size)
    assert (first.size, first.status, first.present) == (7 * GRAIN, BlockStatus.ZERO, False)
    assert (second.size, second.status, second.present) == (GRAIN, BlockStatus.DATA, True)


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("zeroed", ["on", "off"])
def test_a_child_reads_its_parent_until_it_is_written(shelf: Shelf, kind: str, zeroed: str) -> None:
    shelf.create(4 * GRAIN, name="base.vmdk")
    with shelf.open("base.vmdk") as base:
        base.write(0, b"p" * 4 * GRAIN)
    shelf.create(4 * GRAIN, parent="base.vmdk", subformat=kind, zeroed_grain=zeroed)
    with shelf.open() as disk:
        disk.write(512, b"c" * 512)
        disk.write_zeroes(GRAIN, GRAIN)
        expected = b"p" * 512 + b"c" * 512 + b"p" * (GRAIN - 1024) + bytes(GRAIN) + b"p" * 2 * GRAIN
        assert disk.read(0, disk.size) == expected
    with shelf.open(readonly=True) as disk:
        assert disk.read(0, disk.size) == expected
        assert disk.own_map(2 * GRAIN, GRAIN).present is False


def test_a_parent_that_changed_is_refused_until_it_is_taken_as_it_is(shelf: Shelf) -> None:
    shelf.create(GRAIN, name="base.vmdk")
    shelf.create(GRAIN, parent="base.vmdk")
    with shelf.open("base.vmdk") as base:
        base.write(0, b"changed")
    with pytest.raises(CorruptImage, match="parentCID"):
        shelf.open()
    with shelf.open(check=True) as disk:
        assert isinstance(disk, VmdkImage)
        disk.set_backing(BackingReference("base.vmdk", "vmdk"))
        assert disk.read(0, 7) == b"changed"
    with shelf.open() as disk:
        assert disk.read(0, 7) == b"changed"
        disk.set_backing(None)
        assert disk.read(0, 7) == bytes(7)


@pytest.mark.parametrize("kind", SPARSE)
def test_an_emptied_child_is_its_parent_as_it_now_is(shelf: Shelf, kind: str) -> None:
    shelf.create(4 * GRAIN, name="base.vmdk")
    shelf.create(4 * GRAIN, parent="base.vmdk", subformat=kind)
    with shelf.open() as disk:
        disk.write(GRAIN, b"c" * GRAIN)
    with shelf.open("base.vmdk") as base:
        base.write(0, b"q" * GRAIN)
    with shelf.open(check=True) as disk:
        disk.make_empty()
    with shelf.open() as disk:
        assert disk.read(0, 2 * GRAIN) == b"q" * GRAIN + bytes(GRAIN)
        disk.write(0, b"again")
        assert disk.check().errors == 0


def test_the_content_id_changes_with_the_content_alone(shelf: Shelf) -> None:
    shelf.create(GRAIN)
    before = bytes(shelf.content("disk.vmdk")[512:1024])
    shelf.open().close()
    assert shelf.content("disk.vmdk")[512:1024] == before
    with shelf.open() as disk:
        disk.write(0, b"x")
    after = bytes(shelf.content("disk.vmdk")[512:1024])
    place = before.index(b"\nCID=") + 5
    assert before[place : place + 8] != after[place : place + 8]
    assert before[:place] + before[place + 8 :] == after[:place] + after[place + 8 :]


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "vmfsSparse"])
@pytest.mark.parametrize("size", [GRAIN, 2 * GRAIN + 512, 40 * GRAIN])
def test_resizing_keeps_what_fits_and_the_rest_is_zero(shelf: Shelf, kind: str, size: int) -> None:
    shelf.create(3 * GRAIN + 1024, subformat=kind)
    with shelf.open() as disk:
        disk.write(0, b"d" * disk.size)
        expected = (b"d" * min(size, disk.size)).ljust(size, b"\0")
        disk.resize(size)
        assert disk.read(0, size) == expected
        disk.resize(60 * GRAIN)
        assert disk.read(0, disk.size) == expected.ljust(60 * GRAIN, b"\0")
        assert disk.check().clean
    with shelf.open() as disk:
        assert disk.read(0, size) == expected


def test_growing_past_a_split_adds_an_extent_and_shrinking_removes_it(shelf: Shelf) -> None:
    shelf.create(GRAIN, subformat="twoGbMaxExtentSparse")
    with shelf.open() as disk:
        disk.write(0, b"x" * GRAIN)
        disk.resize(SPLIT_SECTORS * 512 + GRAIN)
        disk.write(disk.size - 512, b"y" * 512)
    with shelf.open() as disk:
        assert disk.read(disk.size - 512, 512) == b"y" * 512
        disk.resize(GRAIN)
        assert disk.read(0, GRAIN) == b"x" * GRAIN
    assert sorted(path.name for path in shelf.files.content) == ["disk-s001.vmdk", "disk.vmdk"]


def test_a_directory_that_outgrows_its_place_moves(shelf: Shelf) -> None:
    shelf.create(GRAIN)
    with shelf.open() as disk:
        disk.write(0, b"x" * GRAIN)
        disk.resize(5 << 30)
        disk.write((5 << 30) - 512, b"y" * 512)
    with shelf.open() as disk:
        assert disk.read(0, GRAIN) == b"x" * GRAIN
        assert disk.read((5 << 30) - 512, 512) == b"y" * 512
        assert disk.check().errors == 0


def test_growing_does_not_uncover_a_larger_parent(shelf: Shelf) -> None:
    shelf.create(4 * GRAIN, name="base.vmdk")
    with shelf.open("base.vmdk") as base:
        base.write(0, b"p" * 4 * GRAIN)
    for kind in ("monolithicSparse", "twoGbMaxExtentSparse"):
        shelf.create(GRAIN + 512, name=f"{kind}.vmdk", parent="base.vmdk", subformat=kind)
        with shelf.open(f"{kind}.vmdk") as disk:
            disk.resize(4 * GRAIN)
            assert disk.read(0, disk.size) == (b"p" * (GRAIN + 512)).ljust(4 * GRAIN, b"\0")


def test_an_extent_alone_is_refused(shelf: Shelf) -> None:
    shelf.create(GRAIN, subformat="twoGbMaxExtentSparse")
    shelf.create(GRAIN, name="esx.vmdk", subformat="vmfsSparse")
    for name in ("disk-s001.vmdk", "esx-delta.vmdk"):
        with pytest.raises(UnsupportedImage, match="without the disk's descriptor"):
            shelf.open(name)


def test_extents_outside_the_folder_are_refused(shelf: Shelf) -> None:
    shelf.create(GRAIN, subformat="monolithicFlat")
    text = shelf.content("disk.vmdk")
    text[:] = text.replace(b"disk-flat.vmdk", b"../etc/shadow")
    with pytest.raises(ImageError, match="outside the folders"):
        shelf.open()


@pytest.mark.parametrize(
    "line", ['RW 1 FLAT "disk.vmdk" 0', 'RW 128 SPARSE "disk-s001.vmdk"', 'RW 8 FLAT "disk-s001.vmdk" 0']
)
def test_extents_that_reach_into_metadata_are_refused(shelf: Shelf, line: str) -> None:
    shelf.create(GRAIN, subformat="twoGbMaxExtentSparse")
    text = shelf.content("disk.vmdk")
    text[:] = text.replace(b"\n\n# The Disk", b"\n" + line.encode() + b"\n# The Disk")
    with pytest.raises(CorruptImage, match="in use already"):
        shelf.open()


def test_a_parent_on_another_machine_is_looked_for_beside_its_child(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vmdk", tmp_path / "disk.vmdk"
    create_image(base, GRAIN, format="vmdk")
    create_image(child, GRAIN, format="vmdk", backing=base)
    data, end = child.read_bytes(), 21 * 512
    text = data[512:end].rstrip(b"\0").replace(b'"base.vmdk"', b'"C:\\\\VMs\\\\base.vmdk"')
    child.write_bytes(data[:512] + text.ljust(end - 512, b"\0") + data[end:])
    with open_image(child, format="vmdk", readonly=True) as disk:
        assert disk.backing is not None


def test_a_flat_extent_that_is_too_short_is_refused_and_repaired(shelf: Shelf) -> None:
    shelf.create(GRAIN, subformat="monolithicFlat")
    del shelf.content("disk-flat.vmdk")[512:]
    with pytest.raises(CorruptImage, match="has 512 bytes"):
        shelf.open()
    with shelf.open(check=True) as disk:
        assert disk.check().errors == 1
        assert disk.check(repair=True).clean
    shelf.open().close()


def test_other_kinds_of_extents_are_put_together(shelf: Shelf) -> None:
    shelf.create(GRAIN, subformat="monolithicFlat")
    text = shelf.content("disk.vmdk")
    lines = b'RW 4 FLAT "disk-flat.vmdk" 2\nRW 8 ZERO\nRW 2 FLAT "disk-flat.vmdk" 0'
    text[:] = text.replace(b'RW 128 FLAT "disk-flat.vmdk" 0', lines)
    shelf.content("disk-flat.vmdk")[:2048] = b"01" * 512 + b"23" * 512
    with shelf.open() as disk:
        assert disk.size == 14 * 512
        assert disk.read(0, 4) == b"2323"
        assert disk.read(4 * 512, 8 * 512) == bytes(8 * 512)
        assert disk.read(12 * 512, 4) == b"0101"
        with pytest.raises(UsageError, match="type ZERO"):
            disk.write(4 * 512, b"x")


def test_creating_never_overwrites_and_leaves_nothing_behind(shelf: Shelf) -> None:
    shelf.files.create(shelf.path("disk-s001.vmdk")).close()
    with pytest.raises(HostRefused):
        shelf.create(GRAIN, subformat="twoGbMaxExtentSparse")
    assert list(shelf.files.content) == [shelf.path("disk-s001.vmdk")]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"subformat": "floppy"}, "subformat=floppy"),
        ({"adapter_type": "scsi"}, "adapter_type=scsi"),
        ({"hwversion": "x"}, "hwversion=x"),
        ({"zeroed_grain": "1"}, "on or off"),
        ({"static": "on"}, "no option"),
    ],
)
def test_options_are_checked(shelf: Shelf, options: dict[str, str], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        shelf.create(GRAIN, **options)


def test_what_cannot_have_a_parent_is_refused(shelf: Shelf) -> None:
    shelf.create(GRAIN, name="base.vmdk")
    for kind in (*FLAT, "streamOptimized"):
        with pytest.raises(UsageError, match="no parent"):
            shelf.create(GRAIN, parent="base.vmdk", subformat=kind)
