"""VDI images in memory: reading, writing, parents, resizing, check and repair."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from sublet.block.chain import Chain
from sublet.block.contract import BlockStatus
from sublet.block.description import BackingReference
from sublet.block.format import Image
from sublet.block.vdi import FORMAT, VdiImage
from sublet.block.vdi.layout import Header, Kind
from sublet.errors import CorruptImage, ImageError, UsageError
from sublet.testing.hostfile import MemoryFiles

BLOCK = 4096
PATH, PARENT = Path("/disks/disk.vdi"), Path("/disks/parent.vdi")
SMALL = {"block_size": str(BLOCK)}


def create(
    files: MemoryFiles, size: int, *, path: Path = PATH, parent: Path | None = None, **more: str
) -> None:
    backing = None if parent is None else BackingReference(parent.name, "vdi")
    FORMAT.create(path, size, options=SMALL | more, backing=backing, files=files)


def open_disk(files: MemoryFiles, *, path: Path = PATH, readonly: bool = False, check: bool = False) -> Image:
    return FORMAT.open(path, readonly=readonly, chain=Chain.start(path, files=files), check=check)


def header_of(files: MemoryFiles, path: Path = PATH) -> Header:
    return Header.parse(bytes(files.content[path][:512]))


def set_entry(files: MemoryFiles, block: int, entry: int) -> None:
    struct.pack_into("<I", files.content[PATH], header_of(files).map_offset + 4 * block, entry)


def test_new_disks_are_zero_and_take_no_blocks() -> None:
    files = MemoryFiles()
    create(files, 10 * BLOCK)
    with open_disk(files) as disk:
        assert disk.read(0, disk.size) == bytes(10 * BLOCK)
        extent = disk.map(0, disk.size)
    assert (extent.size, extent.status, extent.present) == (10 * BLOCK, BlockStatus.ZERO, False)
    assert header_of(files).allocated == 0


def test_written_blocks_are_there_after_reopening() -> None:
    files = MemoryFiles()
    create(files, 10 * BLOCK)
    with open_disk(files) as disk:
        disk.write(BLOCK - 512, b"a" * 1024)
        disk.write(9 * BLOCK, b"z" * BLOCK)
    with open_disk(files, readonly=True) as disk:
        assert disk.read(BLOCK - 512, 1024) == b"a" * 1024
        assert disk.read(8 * BLOCK, 2 * BLOCK) == bytes(BLOCK) + b"z" * BLOCK
    assert header_of(files).allocated == 3


def test_a_disk_of_no_bytes_opens() -> None:
    files = MemoryFiles()
    create(files, 0)
    with open_disk(files) as disk:
        assert disk.size == 0
        assert disk.check().clean


def test_a_fixed_disk_has_all_its_blocks() -> None:
    files = MemoryFiles()
    create(files, 3 * BLOCK, static="on")
    header = header_of(files)
    assert (header.kind, header.allocated) == (Kind.FIXED, 3)
    assert len(files.content[PATH]) == header.data_offset + 3 * BLOCK


def test_a_changed_disk_gets_a_new_identity_and_an_unchanged_one_does_not() -> None:
    files = MemoryFiles()
    create(files, BLOCK)
    before = header_of(files).last_change
    open_disk(files).close()
    assert header_of(files).last_change == before
    with open_disk(files) as disk:
        disk.write(0, b"x")
    assert header_of(files).last_change != before


def child_of(files: MemoryFiles, size: int = 4 * BLOCK) -> None:
    create(files, size, path=PARENT)
    with open_disk(files, path=PARENT) as parent:
        parent.write(0, b"p" * size)
    create(files, size, parent=PARENT)


def test_a_child_reads_its_parent_until_it_is_written() -> None:
    files = MemoryFiles()
    child_of(files)
    with open_disk(files) as disk:
        disk.write(512, b"c" * 512)
        disk.write_zeroes(BLOCK, BLOCK)
        expected = b"p" * 512 + b"c" * 512 + b"p" * (BLOCK - 1024) + bytes(BLOCK) + b"p" * (2 * BLOCK)
        assert disk.read(0, disk.size) == expected
        assert disk.own_map(2 * BLOCK, BLOCK).present is False
    with open_disk(files, readonly=True) as disk:
        assert disk.read(0, disk.size) == expected
        assert disk.backing is not None


def test_a_parent_that_changed_is_refused() -> None:
    files = MemoryFiles()
    child_of(files)
    with open_disk(files, path=PARENT) as parent:
        parent.write(0, b"changed")
    with pytest.raises(CorruptImage, match="was changed since"):
        open_disk(files)


def test_a_missing_parent_is_refused() -> None:
    files = MemoryFiles()
    child_of(files)
    del files.content[PARENT]
    with pytest.raises(ImageError, match="needs its parent"):
        open_disk(files)


def test_set_backing_takes_the_parent_as_it_is() -> None:
    files = MemoryFiles()
    child_of(files)
    with open_disk(files) as disk:
        disk.set_backing(None)
        assert disk.read(0, 512) == bytes(512)
        disk.set_backing(BackingReference(PARENT.name, "vdi"))
        assert disk.read(0, 512) == b"p" * 512
    with open_disk(files) as disk:
        assert disk.read(0, 512) == b"p" * 512


def test_an_emptied_child_is_its_parent_as_it_now_is() -> None:
    files = MemoryFiles()
    child_of(files)
    with open_disk(files) as disk:
        disk.write(BLOCK, b"c" * BLOCK)
    with open_disk(files, path=PARENT) as parent:
        parent.write(0, b"q" * BLOCK)
    with open_disk(files, check=True) as disk:
        disk.make_empty()
    with open_disk(files) as disk:
        assert disk.read(0, 2 * BLOCK) == b"q" * BLOCK + b"p" * BLOCK
        assert disk.check().clean


def test_a_parent_of_another_format_is_refused() -> None:
    with pytest.raises(UsageError, match="qcow2"):
        FORMAT.create(PATH, BLOCK, options={}, backing=BackingReference("x", "qcow2"), files=MemoryFiles())


@pytest.mark.parametrize("static", ["on", "off"])
@pytest.mark.parametrize("size", [BLOCK, 3 * BLOCK + 512, 9 * BLOCK, 300_000 * BLOCK])
def test_resizing_keeps_what_fits_and_the_rest_is_zero(size: int, static: str) -> None:
    if static == "on":
        size = min(size, 40 * BLOCK)
    files = MemoryFiles()
    create(files, 5 * BLOCK, static=static)
    with open_disk(files) as disk:
        disk.write(0, b"d" * 5 * BLOCK)
        disk.resize(size)
        shown = min(size, 12 * BLOCK)
        expected = (b"d" * min(size, 5 * BLOCK)).ljust(shown, b"\0")
        assert disk.read(0, shown) == expected
        disk.resize(shown)
        assert disk.read(0, shown) == expected
        assert disk.check().clean
    with open_disk(files) as disk:
        assert disk.read(0, shown) == expected


def test_growing_does_not_uncover_a_larger_parent() -> None:
    files = MemoryFiles()
    create(files, 8 * BLOCK, path=PARENT)
    with open_disk(files, path=PARENT) as parent:
        parent.write(0, b"p" * 8 * BLOCK)
    create(files, BLOCK, parent=PARENT)
    with open_disk(files) as disk:
        disk.resize(8 * BLOCK)
        assert disk.read(0, disk.size) == b"p" * BLOCK + bytes(7 * BLOCK)


def written(count: int = 3) -> MemoryFiles:
    files = MemoryFiles()
    create(files, 5 * BLOCK)
    with open_disk(files) as disk:
        for block in range(count):
            disk.write(block * BLOCK, bytes([65 + block]) * BLOCK)
    return files


def test_check_finds_a_block_used_twice_and_repair_copies_it() -> None:
    files = written()
    set_entry(files, 4, 1)
    with open_disk(files, check=True) as disk:
        assert disk.check().errors == 1
        assert disk.check(repair=True).clean
        assert disk.read(4 * BLOCK, BLOCK) == disk.read(BLOCK, BLOCK) == b"B" * BLOCK
        disk.write(4 * BLOCK, b"new")
        assert disk.read(BLOCK, BLOCK) == b"B" * BLOCK
        assert disk.check().clean


def test_check_finds_a_block_that_cannot_be() -> None:
    files = written()
    set_entry(files, 4, 77)
    with open_disk(files) as disk:
        with pytest.raises(CorruptImage, match="block 77"):
            disk.read(4 * BLOCK, 1)
        assert disk.check().errors == 1
        assert disk.check(repair=True).clean
        assert disk.read(4 * BLOCK, 1) == b"\0"


def test_a_count_that_is_too_small_is_an_error_that_writing_heals() -> None:
    files = written()
    struct.pack_into("<I", files.content[PATH], 388, 1)
    with open_disk(files) as disk:
        assert disk.check().errors == 1
        disk.write(3 * BLOCK, b"D" * BLOCK)
        assert disk.read(0, 4 * BLOCK) == b"".join(bytes([65 + n]) * BLOCK for n in range(4))
        assert disk.check().clean


def test_leaked_blocks_are_counted_reused_and_closed() -> None:
    files = written()
    set_entry(files, 0, 0xFFFF_FFFF)
    with open_disk(files) as disk:
        report = disk.check()
        assert (report.errors, report.leaks) == (0, 1)
        disk.write(4 * BLOCK, b"E" * 512)
        assert disk.read(4 * BLOCK, BLOCK) == (b"E" * 512).ljust(BLOCK, b"\0")
        assert disk.check().clean
    set_entry(files, 1, 0xFFFF_FFFF)
    with open_disk(files) as disk:
        assert disk.check(repair=True).clean
        assert disk.read(2 * BLOCK, BLOCK) == b"C" * BLOCK
    assert header_of(files).allocated == 2


def test_a_file_that_was_cut_is_lengthened() -> None:
    files = written()
    del files.content[PATH][-BLOCK:]
    with open_disk(files) as disk:
        assert disk.check().errors == 1
        assert disk.check(repair=True).clean
        assert disk.read(0, 2 * BLOCK) == b"A" * BLOCK + b"B" * BLOCK


def test_a_map_outside_the_file_is_refused() -> None:
    files = written()
    del files.content[PATH][520:]
    with pytest.raises(CorruptImage, match="block map"):
        open_disk(files)


def test_info_names_the_kind_and_identities() -> None:
    files = written()
    with open_disk(files) as disk:
        assert isinstance(disk, VdiImage)
        info = disk.info()
    assert info.details["type"] == "dynamic"
    assert info.details["uuid"] == str(header_of(files).image)
    assert info.cluster_size == BLOCK
