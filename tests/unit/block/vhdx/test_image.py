"""VHDX images: what is particular to the format. Reading and writing is in tests/conformance/block."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from sublet.block import BlockStatus, create_image, open_image
from sublet.block.description import BackingReference
from sublet.block.vhdx.layout import (
    BAT_REGION,
    HEADER_OFFSETS,
    HEADER_SIZE,
    METADATA_REGION,
    REGION_OFFSETS,
    Header,
    Region,
    pack_parent_locator,
    pack_regions,
    parse_metadata_table,
    parse_parent_locator,
    parse_regions,
)
from sublet.errors import CorruptImage, ImageError, UnsupportedImage, UsageError
from sublet.testing.hostfile import MemoryFiles, RecordingFiles

MIB = 1 << 20
OPTIONS = {"block_size": "1M"}
BAT = 3 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.vhdx"
    create_image(path, 4 * MIB, format="vhdx", options=OPTIONS)
    with open_image(path) as image:
        image.write(MIB, b"held" * 30000)
    return path


def change(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def header_of(path: Path) -> Header:
    raw = path.read_bytes()
    found = [Header.parse(raw[offset : offset + HEADER_SIZE]) for offset in HEADER_OFFSETS]
    return max((header for header in found if header), key=lambda header: header.sequence_number)


def child_of(disk: Path) -> Path:
    child = disk.parent / "child.vhdx"
    create_image(child, None, format="vhdx", options=OPTIONS, backing=disk)
    return child


def crashed() -> tuple[Path, dict[Path, bytearray]]:
    """Files of a disk whose last change is in the log alone."""
    path, files = Path("/disk.vhdx"), RecordingFiles()
    create_image(path, 4 * MIB, format="vhdx", options=OPTIONS, files=files)
    start = len(files.recording.events)
    image = open_image(path, format="vhdx", files=files)
    image.write(2 * MIB, b"logged")
    image.flush()
    events = files.recording.events
    last = max(index for index, event in enumerate(events) if event.offset // MIB == 3 and index > start)
    return path, files.recording.after(events[:last])


def test_a_log_is_applied_when_the_disk_is_opened_for_writing() -> None:
    path, content = crashed()
    files = MemoryFiles(content)
    assert not any(content[path][BAT : BAT + 64])
    with open_image(path, format="vhdx", files=files) as image:
        assert image.read(2 * MIB, 6) == b"logged"
    assert any(content[path][BAT : BAT + 64])
    with open_image(path, format="vhdx", files=files, readonly=True) as image:
        assert not image.info().dirty


def test_a_log_is_seen_through_but_left_when_it_is_opened_for_reading() -> None:
    path, content = crashed()
    before = bytes(content[path])
    with open_image(path, format="vhdx", files=MemoryFiles(content), readonly=True) as image:
        assert image.info().dirty
        assert image.read(2 * MIB, 6) == b"logged"
    assert content[path] == before


def test_a_file_shorter_than_when_it_was_logged_is_refused() -> None:
    path, content = crashed()
    del content[path][-1:]
    with pytest.raises(CorruptImage, match="when it was logged"):
        open_image(path, format="vhdx", files=MemoryFiles(content))


@pytest.mark.parametrize("slot", [0, 1])
def test_either_header_suffices(disk: Path, slot: int) -> None:
    change(disk, HEADER_OFFSETS[slot] + 100, b"damage")
    with open_image(disk, check=True) as image:
        assert image.check().leaks == 1
        assert image.check(repair=True).clean
    with open_image(disk, readonly=True) as image:
        assert image.check().clean
        assert image.read(MIB, 4) == b"held"


def test_both_headers_damaged_is_refused(disk: Path) -> None:
    for offset in HEADER_OFFSETS:
        change(disk, offset + 100, b"damage")
    with pytest.raises(CorruptImage, match="both VHDX headers"):
        open_image(disk)


@pytest.mark.parametrize("slot", [0, 1])
def test_either_region_table_suffices(disk: Path, slot: int) -> None:
    change(disk, REGION_OFFSETS[slot] + 100, b"damage")
    with open_image(disk, check=True) as image:
        assert image.check(repair=True).clean
        assert image.check().leaks == 0
        assert image.read(MIB, 4) == b"held"


def test_a_required_region_that_is_unknown_is_refused(disk: Path) -> None:
    regions = [Region(BAT_REGION, BAT, MIB), Region(METADATA_REGION, 2 * MIB, MIB)]
    raw = pack_regions([*regions, Region(uuid.UUID(int=1), 4 * MIB, MIB)])
    for offset in REGION_OFFSETS:
        change(disk, offset, raw)
    with pytest.raises(UnsupportedImage, match="required region"):
        open_image(disk)


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        (4, "reserved state"),
        (5, "reserved state"),
        (1 << 60 | 6, "outside"),
        (7 | 4 << 20, "without a parent"),
    ],
)
def test_a_bad_table_entry_is_named(disk: Path, entry: int, field: str) -> None:
    change(disk, BAT, entry.to_bytes(8, "little"))
    with open_image(disk, check=True) as image:
        with pytest.raises(CorruptImage, match=field):
            image.read(0, 512)
        assert image.check().errors


def test_a_block_over_metadata_is_an_error(disk: Path) -> None:
    change(disk, BAT, (2 << 20 | 6).to_bytes(8, "little"))
    with open_image(disk, check=True) as image:
        assert image.check().errors == 1


@pytest.mark.parametrize(
    ("item", "value", "field"),
    [
        (0, (3 * MIB).to_bytes(4, "little"), "block size"),
        (8, (65 << 40).to_bytes(8, "little"), "disk size"),
        (8, (60 << 40).to_bytes(8, "little"), "BAT"),
        (32, (1024).to_bytes(4, "little"), "logical sector size"),
    ],
)
def test_metadata_out_of_range_is_named(disk: Path, item: int, value: bytes, field: str) -> None:
    change(disk, 2 * MIB + 65536 + item, value)
    with pytest.raises(CorruptImage, match=field):
        open_image(disk)


def test_an_item_outside_its_region_is_refused() -> None:
    table = bytearray(65536)
    table[:12] = b"metadata\0\0\x01\0"
    table[32 + 16 : 32 + 24] = (MIB - 4).to_bytes(4, "little") + (8).to_bytes(4, "little")
    with pytest.raises(CorruptImage, match="metadata table"):
        parse_metadata_table(bytes(table), MIB)


def test_a_parent_locator_outside_its_item_is_refused() -> None:
    raw = pack_parent_locator({"parent_linkage": "{}"})
    assert parse_parent_locator(raw) == {"parent_linkage": "{}"}
    with pytest.raises(CorruptImage, match="outside"):
        parse_parent_locator(raw[:-2])


def test_region_tables_survive_packing() -> None:
    regions = [Region(BAT_REGION, BAT, MIB), Region(METADATA_REGION, 2 * MIB, MIB)]
    assert parse_regions(pack_regions(regions)) == regions


def test_writing_changes_the_guids_once_a_session(disk: Path) -> None:
    before = header_of(disk)
    with open_image(disk) as image:
        image.read(0, 512)
    assert header_of(disk) == before
    with open_image(disk) as image:
        image.write(0, b"x")
    after = header_of(disk)
    assert after.data_write_guid != before.data_write_guid
    assert after.log_guid.int == 0


def test_growing_moves_the_table_when_it_is_full(disk: Path) -> None:
    with open_image(disk) as image:
        image.resize(200 << 30)
        image.write((200 << 30) - 3, b"end")
        assert image.read(MIB, 4) == b"held"
    with open_image(disk) as image:
        assert image.read((200 << 30) - 3, 3) == b"end"
        assert not image.check().errors


def test_a_child_reads_through_to_its_parent(disk: Path) -> None:
    child = child_of(disk)
    with open_image(child) as image:
        assert image.info().backing == BackingReference("disk.vhdx", "vhdx")
        image.write(MIB + 1, b"x")
        assert image.read(MIB, 4) == b"hxld"
        assert image.map(MIB + 4096, 512).depth == 1
        image.write_zeroes(MIB, MIB)
        assert image.block_status(MIB, MIB).status is BlockStatus.ZERO
        assert image.read(MIB, MIB) == bytes(MIB)


def test_a_parent_that_was_written_to_is_refused(disk: Path) -> None:
    child = child_of(disk)
    with open_image(disk) as image:
        image.write(0, b"x")
    with pytest.raises(ImageError, match="written to since"):
        open_image(child)


def test_a_child_can_move_to_another_parent_and_to_none(disk: Path) -> None:
    child, copy = child_of(disk), disk.parent / "copy.vhdx"
    copy.write_bytes(disk.read_bytes())
    with open_image(child) as image:
        image.write(0, b"own")
        image.set_backing(BackingReference("copy.vhdx", "vhdx"))
    disk.unlink()
    with open_image(child) as image:
        assert image.read(MIB, 4) == b"held"
        image.set_backing(None)
        assert image.read(MIB, 4) == bytes(4)
    with open_image(child) as image:
        assert image.backing is None
        assert image.read(0, 3) == b"own"
        assert image.check().clean


def test_sectors_of_4096_bytes_are_offered_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    create_image(path, MIB, format="vhdx", options={"logical_sector_size": "4096"})
    with open_image(path) as image:
        assert image.block_size == 4096
        with pytest.raises(UsageError, match="4096"):
            image.resize(MIB + 512)
    with pytest.raises(UsageError, match="4096"):
        create_image(tmp_path / "odd.vhdx", 512, format="vhdx", options={"logical_sector_size": "4096"})


def test_a_large_disk_opens_without_reading_its_table(tmp_path: Path) -> None:
    path = tmp_path / "large.vhdx"
    create_image(path, 64 << 40, format="vhdx", options=OPTIONS)
    with open_image(path) as image:
        image.write((64 << 40) - 4096, b"x" * 4096)
        assert image.read((64 << 40) - 4096, 4096) == b"x" * 4096
