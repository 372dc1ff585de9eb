"""Requests that pass by the tables, while others change them."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from sublet.block import create_image, open_image
from sublet.block.live.drive import Drive
from sublet.block.qcow2.image import Qcow2Image
from sublet.block.qcow2.tables import CACHE_BYTES

CLUSTER: Final = 4096
BLOCK: Final = 512
THREADS: Final = 3
SHARE: Final = 64 * CLUSTER
"""Bytes of the disk that one thread works on."""


def make(path: Path, size: int, cluster: int = CLUSTER) -> Qcow2Image:
    create_image(path, size, format="qcow2", options={"cluster_size": str(cluster)})
    image = open_image(path, format="qcow2")
    assert isinstance(image, Qcow2Image)
    return image


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Qcow2Image]:
    with make(tmp_path / "disk.qcow2", THREADS * SHARE) as made:
        yield made


class Writer(threading.Thread):
    """Writes, discards and reads back in its own part of a device until it is told to stop."""

    def __init__(self, device: Qcow2Image | Drive, number: int, stop: threading.Event) -> None:
        super().__init__()
        self._device = device
        self._base = number * SHARE
        self._chance = random.Random(number)
        self._stop_asked = stop
        self.model = bytearray(SHARE)
        self.failure = ""

    def run(self) -> None:
        while not self._stop_asked.is_set() and not self.failure:
            self._step()

    def _step(self) -> None:
        size = self._chance.choice((1, 1, 8, 20)) * BLOCK
        place = self._chance.randrange((SHARE - size) // BLOCK) * BLOCK
        if self._chance.randrange(8):
            data = self._chance.randbytes(size)
            self._device.write(self._base + place, data)
        else:
            data = bytes(size)
            self._device.write_zeroes(self._base + place, size)
        self.model[place : place + size] = data
        start = place // CLUSTER * CLUSTER
        if self._device.read(self._base + start, CLUSTER) != self.model[start : start + CLUSTER]:
            self.failure = f"what is read at {self._base + start} is not what was written"


def run_beside(device: Qcow2Image | Drive, rounds: int, change: object) -> list[Writer]:
    """Let writers work while ``change`` is called for each round."""
    assert callable(change)
    stop = threading.Event()
    writers = [Writer(device, number, stop) for number in range(THREADS)]
    for writer in writers:
        writer.start()
    try:
        for number in range(rounds):
            change(number)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert [writer.failure for writer in writers] == [""] * THREADS
    return writers


def test_nothing_is_lost_while_snapshots_come_and_go(image: Qcow2Image) -> None:
    def change(number: int) -> None:
        image.create_snapshot(f"s{number}")
        image.flush()
        image.delete_snapshot(f"s{number}")

    writers = run_beside(image, 8, change)
    assert image.read(0, image.size) == b"".join(writer.model for writer in writers)
    image.flush()
    assert image.check().clean


def test_a_bitmap_sees_every_write_from_its_beginning(image: Qcow2Image) -> None:
    before: list[bytes] = []

    def change(number: int) -> None:
        if number == 10:
            with image._alone():
                before.append(image.read(0, image.size))
                image.add_bitmap("dirty", granularity=CLUSTER)

    run_beside(image, 20, change)
    dirty = {
        place for start, size in image.dirty_ranges("dirty") for place in range(start, start + size, CLUSTER)
    }
    after = image.read(0, image.size)
    changed = {
        place
        for place in range(0, image.size, CLUSTER)
        if after[place : place + CLUSTER] != before[0][place : place + CLUSTER]
    }
    assert changed <= dirty


def test_who_has_the_drive_alone_sees_no_change(image: Qcow2Image) -> None:
    drive = Drive(image)
    torn: list[int] = []

    def change(number: int) -> None:
        with drive.alone():
            if image.read(0, image.size) != image.read(0, image.size):
                torn.append(number)

    run_beside(drive, 20, change)
    assert not torn
    assert drive.in_place is not None


def test_an_exchanged_image_takes_nothing_any_more(tmp_path: Path) -> None:
    old, new = make(tmp_path / "old.qcow2", SHARE), make(tmp_path / "new.qcow2", SHARE)
    drive = Drive(old)
    drive.write(0, b"x" * BLOCK)
    way = drive.in_place
    assert way is not None
    assert way.write(0, b"y" * BLOCK)
    with drive.alone():
        assert drive.exchange(new) is old
    assert not way.write(0, b"z" * BLOCK)
    assert old.read(0, BLOCK) == b"y" * BLOCK
    old.close()
    drive.close()


def test_a_closed_image_has_no_way_left(image: Qcow2Image) -> None:
    image.write(0, b"x" * BLOCK)
    image.close()
    assert image.in_place.read(0, BLOCK) is None
    assert not image.in_place.write(0, b"y" * BLOCK)


def test_a_table_that_is_used_past_the_format_stays_in_memory(tmp_path: Path) -> None:
    cluster = 2 << 20
    span = cluster // 8 * cluster
    tables = CACHE_BYTES // cluster
    with make(tmp_path / "disk.qcow2", span * (tables + 4), cluster) as image:
        for number in range(tables + 4):
            image.write(number * span, b"x" * BLOCK)
            image.flush()
            assert image.in_place.read(0, BLOCK) is not None
