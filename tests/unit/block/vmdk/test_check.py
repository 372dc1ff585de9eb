"""Damaged tables of sparse extents: found, and mended without losing data."""

from __future__ import annotations

import struct

import pytest
from tests.unit.block.vmdk.conftest import Shelf

from sublet.block.chain import Chain
from sublet.block.vmdk import FORMAT
from sublet.block.vmdk.layout import HostedHeader
from sublet.errors import CorruptImage
from sublet.testing.hostfile import FaultyFiles

GRAIN = 65536


@pytest.fixture
def disk(shelf: Shelf) -> Shelf:
    """A disk whose first three grains are A, B and C."""
    shelf.create(10 * GRAIN)
    with shelf.open() as image:
        for number in range(3):
            image.write(number * GRAIN, bytes([65 + number]) * GRAIN)
    return shelf


def entry_offset(shelf: Shelf, grain: int, *, redundant: bool = False) -> int:
    header = HostedHeader.parse(bytes(shelf.content("disk.vmdk")[:512]), "x")
    directory = header.redundant_gd_offset if redundant else header.gd_offset
    (table,) = struct.unpack_from("<I", shelf.content("disk.vmdk"), directory * 512)
    return table * 512 + 4 * grain


def set_entry(shelf: Shelf, grain: int, value: int, *, both: bool = True) -> None:
    for redundant in (False, True) if both else (False,):
        offset = entry_offset(shelf, grain, redundant=redundant)
        struct.pack_into("<I", shelf.content("disk.vmdk"), offset, value)


def entry(shelf: Shelf, grain: int) -> int:
    value: int = struct.unpack_from("<I", shelf.content("disk.vmdk"), entry_offset(shelf, grain))[0]
    return value


def test_a_grain_on_metadata_is_refused_and_forgotten(disk: Shelf) -> None:
    set_entry(disk, 5, 1)
    with disk.open() as image:
        with pytest.raises(CorruptImage, match="where metadata is"):
            image.write(5 * GRAIN, b"a guest's idea of a descriptor")
        assert image.check().errors == 1
        assert image.check(repair=True).clean
        assert image.read(5 * GRAIN, GRAIN) == bytes(GRAIN)


def test_a_shared_grain_is_copied(disk: Shelf) -> None:
    set_entry(disk, 5, entry(disk, 1))
    with disk.open() as image:
        assert image.check().errors == 1
        assert image.check(repair=True).clean
        image.write(5 * GRAIN, b"new")
        assert image.read(GRAIN, GRAIN) == b"B" * GRAIN
        assert image.read(5 * GRAIN, GRAIN) == b"new" + b"B" * (GRAIN - 3)
        assert image.check().clean


def test_a_grain_past_the_end_lengthens_the_file(disk: Shelf) -> None:
    del disk.content("disk.vmdk")[-GRAIN // 2 :]
    with disk.open() as image:
        assert image.check().errors == 1
        assert image.check(repair=True).clean
        assert image.read(2 * GRAIN, GRAIN) == (b"C" * (GRAIN // 2)).ljust(GRAIN, b"\0")


def test_a_table_that_is_behind_its_twin_is_no_error(disk: Shelf) -> None:
    set_entry(disk, 2, 0, both=False)
    with disk.open() as image:
        report = image.check()
        assert (report.errors, report.leaks) == (0, 2)
        assert image.check(repair=True).clean
        assert image.read(2 * GRAIN, GRAIN) == b"C" * GRAIN
        assert image.check().clean


def test_tables_that_contradict_each_other_are_an_error(disk: Shelf) -> None:
    set_entry(disk, 2, entry(disk, 1), both=False)
    with disk.open() as image:
        assert image.check().errors == 2


def test_leaked_grains_are_closed(disk: Shelf) -> None:
    size = len(disk.content("disk.vmdk"))
    set_entry(disk, 0, 0)
    with disk.open() as image:
        report = image.check()
        assert (report.errors, report.leaks) == (0, 1)
        assert image.check(repair=True).clean
        assert image.read(0, 3 * GRAIN) == bytes(GRAIN) + b"B" * GRAIN + b"C" * GRAIN
    assert len(disk.content("disk.vmdk")) == size - GRAIN


def test_a_table_outside_the_file_is_an_error(disk: Shelf) -> None:
    header = HostedHeader.parse(bytes(disk.content("disk.vmdk")[:512]), "x")
    struct.pack_into("<I", disk.content("disk.vmdk"), header.gd_offset * 512, 1 << 30)
    with disk.open(readonly=True, check=True) as image:
        assert image.check().errors == 1


def test_a_directory_outside_the_file_is_refused(disk: Shelf) -> None:
    struct.pack_into("<Q", disk.content("disk.vmdk"), 56, 1 << 40)
    with pytest.raises(CorruptImage, match="grain directory"):
        disk.open()


def test_an_extent_whose_flush_failed_stays_marked(disk: Shelf) -> None:
    failing: set[str] = set()
    files = FaultyFiles(disk.files.content, failing.__contains__)
    path = disk.path("disk.vmdk")
    image = FORMAT.open(path, readonly=False, chain=Chain.start(path, files=files))
    image.write(9 * GRAIN, b"x")
    failing.add("flush")
    with pytest.raises(OSError, match="Input/output"):
        image.close()
    assert disk.content("disk.vmdk")[72] == 1


def test_an_open_extent_is_marked_until_it_is_closed(disk: Shelf) -> None:
    image = disk.open()
    assert not image.info().dirty
    image.write(0, b"x")
    assert disk.content("disk.vmdk")[72] == 1
    image.close()
    assert disk.content("disk.vmdk")[72] == 0
