"""Raw images on files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sublet.block import BlockStatus, RawImage
from sublet.errors import HostRefused, ImageError, UsageError, WrongMoment

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"")
    os.truncate(path, MIB)
    return path


def test_round_trip(path: Path) -> None:
    image = RawImage(path)
    image.write(4096, b"data" * 128)
    assert image.read(4096, 512) == b"data" * 128
    buffer = bytearray(512)
    image.readinto(4096, buffer)
    assert buffer == b"data" * 128
    image.close()
    assert path.read_bytes()[4096:4608] == b"data" * 128


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (MIB, 1), (MIB - 1, 2), (0, MIB + 1)])
def test_outside_the_disk(path: Path, offset: int, size: int) -> None:
    image = RawImage(path)
    with pytest.raises(UsageError):
        image.read(offset, size)
    with pytest.raises(UsageError):
        image.write(offset, bytes(size))
    image.close()


@pytest.mark.parametrize("unmap", [True, False])
def test_write_zeroes(path: Path, unmap: bool) -> None:
    image = RawImage(path)
    image.write(0, b"x" * MIB)
    image.write_zeroes(4096, 8192, unmap=unmap)
    assert image.read(0, MIB) == b"x" * 4096 + bytes(8192) + b"x" * (MIB - 12288)
    image.close()


def test_write_zeroes_where_the_host_cannot(path: Path) -> None:
    image = RawImage(path)
    image._can_fallocate = False
    image.write(0, b"x" * MIB)
    image.write_zeroes(0, MIB)
    assert image.read(0, MIB) == bytes(MIB)
    image.close()


def test_discard_keeps_the_size(path: Path) -> None:
    image = RawImage(path)
    image.write(0, b"x" * MIB)
    image.discard(0, MIB)
    image.flush()
    assert path.stat().st_size == MIB
    image.close()


def test_block_status_finds_holes(path: Path) -> None:
    image = RawImage(path)
    image.write(65536, b"x" * 65536)
    extent = image.block_status(0, MIB)
    assert extent.offset == 0
    if extent.status is BlockStatus.ZERO:  # a file system without holes says that all is data
        assert extent.size == 65536
        assert image.block_status(65536, MIB - 65536).status is BlockStatus.DATA
    image.close()


def test_read_only(path: Path) -> None:
    image = RawImage(path, readonly=True)
    for attempt in (
        lambda: image.write(0, b"x"),
        lambda: image.discard(0, 512),
        lambda: image.write_zeroes(0, 1),
    ):
        with pytest.raises(WrongMoment):
            attempt()
    image.close()


def test_two_machines_cannot_write_one_disk(path: Path) -> None:
    first = RawImage(path)
    for readonly in (False, True):
        with pytest.raises(HostRefused, match="in use"):
            RawImage(path, readonly=readonly)
    first.close()
    readers = [RawImage(path, readonly=True) for _ in range(2)]
    with pytest.raises(HostRefused, match="in use"):
        RawImage(path)
    for reader in readers:
        reader.close()


def test_content_is_never_guessed_at(path: Path) -> None:
    path.write_bytes(b"QFI\xfb" + bytes(1020))
    image = RawImage(path)
    assert image.size == 1024
    assert image.read(0, 4) == b"QFI\xfb"
    image.close()


def test_what_is_not_a_disk(tmp_path: Path) -> None:
    with pytest.raises(HostRefused, match="No such file"):
        RawImage(tmp_path / "missing")
    with pytest.raises(ImageError, match="neither"):
        RawImage(tmp_path, readonly=True)
    (tmp_path / "empty").touch()
    with pytest.raises(ImageError, match="smaller than a sector"):
        RawImage(tmp_path / "empty")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match="neither"):
        RawImage(tmp_path / "fifo", readonly=True)


def test_shrunk_file_reads_zeroes(path: Path) -> None:
    image = RawImage(path, readonly=True)
    os.truncate(path, 512)
    assert image.read(0, 1024) == bytes(1024)
    image.close()
    with pytest.raises(WrongMoment):
        image.read(0, 1)
