"""The core's way past VDI, VMDK, VHD and VHDX, while others change the tables."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from sublet.block import Image, create_image, open_image
from sublet.block.places import TABLE_ENTRIES, Places
from sublet.units import MIB

BLOCK: Final = 512
THREADS: Final = 3
SHARE: Final = 4 * MIB
"""Bytes of the disk that one thread works on."""
SMALL_BLOCKS: Final = {
    "vdi": {"block_size": "65536"},
    "vmdk": {},
    "vhd": {"block_size": "64K"},
    "vhdx": {"block_size": "1M"},
}
PLAIN: Final = {**SMALL_BLOCKS, "vhd-fixed": {"subformat": "fixed"}}
FREEING: Final = ("vhd", "vhdx")


def make(folder: Path, name: str, size: int = THREADS * SHARE) -> Image:
    path = folder / f"disk.{name}"
    format = name.partition("-")[0]
    create_image(path, size, format=format, options=PLAIN[name])
    return open_image(path, format=format)


@pytest.fixture(params=SMALL_BLOCKS)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Image]:
    with make(tmp_path, request.param) as made:
        yield made


def test_what_was_written_once_is_overwritten_past_the_format(image: Image) -> None:
    assert image.in_place is not None
    assert not image.in_place.write(0, b"x" * BLOCK)
    image.write(0, b"x" * 4096)
    image.read(0, BLOCK)
    assert image.in_place.write(BLOCK, b"y" * BLOCK)
    assert image.in_place.read(0, 2 * BLOCK) == b"x" * BLOCK + b"y" * BLOCK
    image.flush()
    image.close()
    with open_image(image.path, format=image.format, readonly=True) as again:
        assert again.read(0, 3 * BLOCK) == b"x" * BLOCK + b"y" * BLOCK + b"x" * BLOCK


def test_an_image_that_is_read_only_is_not_written(image: Image) -> None:
    image.write(0, b"x" * 4096)
    image.close()
    with open_image(image.path, format=image.format, readonly=True) as again:
        again.read(0, BLOCK)
        assert again.in_place is not None
        assert again.in_place.read(0, BLOCK) == b"x" * BLOCK
        assert not again.in_place.write(0, b"y" * BLOCK)


@pytest.mark.parametrize("name", FREEING)
def test_a_block_that_was_given_back_is_the_formats_again(tmp_path: Path, name: str) -> None:
    with make(tmp_path, name) as image:
        assert image.in_place is not None
        image.write(0, b"x" * MIB)
        image.read(0, MIB)
        assert image.in_place.read(0, BLOCK) is not None
        image.discard(0, MIB)
        assert image.in_place.read(0, BLOCK) is None
        assert image.read(0, BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize("name", PLAIN)
def test_a_resized_disk_goes_on(tmp_path: Path, name: str) -> None:
    with make(tmp_path, name) as image:
        image.write(0, b"x" * MIB)
        image.write(2 * MIB, b"z" * MIB)
        image.resize(2 * MIB)
        assert image.in_place is not None
        assert image.in_place.read(2 * MIB, BLOCK) is None
        image.resize(3 * MIB)
        assert image.read(0, MIB) == b"x" * MIB
        assert image.read(2 * MIB, MIB) == bytes(MIB)
        image.write(2 * MIB, b"y" * BLOCK)
        assert image.read(2 * MIB, 2 * BLOCK) == b"y" * BLOCK + bytes(BLOCK)


class Writer(threading.Thread):
    """Writes, zeroes and reads back in its own part of a disk until it is told to stop."""

    def __init__(self, image: Image, number: int, stop: threading.Event) -> None:
        super().__init__()
        self._image = image
        self._base = number * SHARE
        self._chance = random.Random(number)
        self._stop_asked = stop
        self.model = bytearray(SHARE)
        self.failure = ""

    def run(self) -> None:
        while not self._stop_asked.is_set() and not self.failure:
            self._step()

    def _step(self) -> None:
        if self._chance.randrange(8):
            size = self._chance.choice((1, 1, 8, 20)) * BLOCK
            place = self._chance.randrange((SHARE - size) // BLOCK) * BLOCK
            data = self._chance.randbytes(size)
            self._image.write(self._base + place, data)
        else:
            size = MIB
            place = self._chance.randrange(SHARE // MIB) * MIB
            data = bytes(size)
            self._image.write_zeroes(self._base + place, size)
        self.model[place : place + size] = data
        start = place // BLOCK * BLOCK
        if self._image.read(self._base + start, 4096) != self.model[start : start + 4096].ljust(4096, b"\0"):
            self.failure = f"what is read at {self._base + start} is not what was written"


def test_blocks_that_change_hands_meanwhile_lose_nothing(image: Image) -> None:
    # A share more, so that reads past a writer's end find zeroes.
    image.resize((THREADS + 1) * SHARE)
    stop = threading.Event()
    writers = [Writer(image, number, stop) for number in range(THREADS)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(12):
            image.flush()
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert not [writer.failure for writer in writers if writer.failure]
    image.close()
    with open_image(image.path, format=image.format, readonly=True) as again:
        for number, writer in enumerate(writers):
            assert again.read(number * SHARE, SHARE) == writer.model
        assert again.check().clean


def test_a_bounded_number_of_tables_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    with open_image(path, format="raw") as holder:
        places = Places(holder.file, 1 << 50, 65536)  # type: ignore[attr-defined]
        for number in range(3000):
            places.found(number * TABLE_ENTRIES, 512)
        assert len(places._tables) <= 2048
        assert places.in_place.read(2999 * TABLE_ENTRIES * 65536, BLOCK) == bytes(BLOCK)
        assert places.in_place.read(0, BLOCK) is None
        places.in_place.shut()
