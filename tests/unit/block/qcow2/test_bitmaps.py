"""Persistent dirty bitmaps, and backups made with them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sublet.block import create_image, open_image
from sublet.block.operations import back_up_increment, convert
from sublet.block.qcow2.bitmaps import bit_runs, set_bits
from sublet.block.qcow2.image import Qcow2Image
from sublet.errors import UsageError

KIB, MIB = 1 << 10, 1 << 20
GRAIN = 64 * KIB


def open_qcow2(path: Path, *, readonly: bool = False) -> Qcow2Image:
    image = open_image(path, readonly=readonly)
    assert isinstance(image, Qcow2Image)
    return image


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    create_image(path, 8 * MIB, format="qcow2")
    with open_qcow2(path) as image:
        image.write(0, b"before" * 1000)
        image.add_bitmap("b")
    return path


@pytest.fixture
def image(path: Path) -> Iterator[Qcow2Image]:
    with open_qcow2(path) as image:
        yield image


def test_bits_and_runs() -> None:
    rng = random.Random(1)
    for _ in range(200):
        bits, model = bytearray(8), [False] * 64
        for _ in range(rng.randrange(4)):
            first = rng.randrange(64)
            last = rng.randrange(first, 70)
            set_bits(bits, first, last)
            model[first:last] = [True] * (min(last, 64) - first)
        found = [False] * 64
        for first, last in bit_runs(bits):
            found[first:last] = [True] * (last - first)
        assert found == model


def test_what_is_written_is_dirty(path: Path, image: Qcow2Image) -> None:
    assert image.dirty_ranges("b") == []
    image.write(GRAIN - 1, b"xy")
    image.write_zeroes(MIB, 100)
    image.discard(2 * MIB, GRAIN)
    image.write_compressed(4 * MIB, b"c" * 2 * GRAIN)
    expected = [(0, 2 * GRAIN), (MIB, GRAIN), (2 * MIB, GRAIN), (4 * MIB, 2 * GRAIN)]
    assert image.dirty_ranges("b") == expected
    image.close()
    with open_qcow2(path, readonly=True) as again:
        assert again.dirty_ranges("b") == expected
        assert again.check().clean
    with open_qcow2(path) as again:
        again.write(7 * MIB, b"x")
        again.resize(9 * MIB)
        assert again.dirty_ranges("b") == [*expected, (7 * MIB, GRAIN), (8 * MIB, MIB)]
        again.clear_bitmap("b")
        again.create_snapshot("s")
    with open_qcow2(path) as again:
        assert again.dirty_ranges("b") == []
        again.remove_bitmap("b")
        assert again.check().clean
        with pytest.raises(UsageError, match="no bitmap"):
            again.dirty_ranges("b")


def test_names_and_granularity(image: Qcow2Image) -> None:
    for name, granularity in (("b", GRAIN), ("", GRAIN), ("c", 100), ("c", 256), ("c", 1 << 32)):
        with pytest.raises(UsageError):
            image.add_bitmap(name, granularity=granularity)


def test_a_crash_makes_it_worthless(tmp_path: Path, path: Path, image: Qcow2Image) -> None:
    image.write(0, b"x")
    image.flush()
    copy = tmp_path / "crashed.qcow2"
    shutil.copy(path, copy)
    with open_qcow2(copy) as crashed:
        with pytest.raises(UsageError, match="cleanly"):
            crashed.dirty_ranges("b")
        assert crashed.check().clean
        crashed.remove_bitmap("b")
        crashed.add_bitmap("b")


def test_full_then_increments_then_restore(tmp_path: Path, image: Qcow2Image) -> None:
    rng = random.Random(4)
    backups = [tmp_path / "full.qcow2"]
    states = []
    image.clear_bitmap("b")
    convert(image, backups[0], format="qcow2")
    for number in range(3):
        for _ in range(5):
            image.write(rng.randrange(8 * MIB - 70_000), rng.randbytes(rng.choice([1, 512, 70_000])))
        image.write_zeroes(number * MIB, 300_000)
        states.append(image.read(0, image.size))
        backups.append(tmp_path / f"increment{number}.qcow2")
        size = back_up_increment(image, backups[-1], bitmap="b", previous=backups[-2])
        assert 0 < size < 4 * MIB
    for backup, state in zip(backups[1:], states, strict=True):
        with open_image(backup, readonly=True) as restored:
            assert restored.read(0, restored.size) == state


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_qemu_agrees(path: Path) -> None:
    with open_qcow2(path) as image:
        image.write(3 * MIB, b"x")
    run = {"check": True, "capture_output": True, "text": True}
    subprocess.run(["qemu-img", "check", str(path)], **run)  # type: ignore[call-overload]
    words = ["qemu-img", "info", "--output=json", str(path)]
    shown = json.loads(subprocess.run(words, **run).stdout)  # type: ignore[call-overload]
    bitmaps = shown["format-specific"]["data"]["bitmaps"]
    assert bitmaps == [{"flags": ["auto"], "name": "b", "granularity": GRAIN}]
    subprocess.run(["qemu-img", "bitmap", "--add", "-g", "4096", str(path), "theirs"], **run)  # type: ignore[call-overload]
    subprocess.run(["qemu-io", "-c", "write 5M 4k", str(path)], **run)  # type: ignore[call-overload]
    with open_qcow2(path) as image:
        assert image.dirty_ranges("b") == [(3 * MIB, GRAIN), (5 * MIB, GRAIN)]
        assert image.dirty_ranges("theirs") == [(5 * MIB, 4 * KIB)]
        assert image.check().clean
