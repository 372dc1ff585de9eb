"""A conversion that dies at any moment leaves no target, or the whole of it, and an old one as it was."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sublet.block import create_image, open_image
from sublet.block.operations import convert

MIB = 1 << 20
SIZE = 48 * MIB


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A disk that takes a moment to copy."""
    path = tmp_path / "source.qcow2"
    create_image(path, SIZE, format="qcow2")
    data = random.Random(1).randbytes(MIB)
    with open_image(path) as image:
        for number in range(0, SIZE // MIB, 2):
            image.write(number * MIB, bytes([number]) + data[1:])
    return path


def content(path: Path) -> bytes:
    """What an image holds; it checks clean."""
    with open_image(path, readonly=True) as image:
        assert image.check().clean
        return image.read(0, image.size)


@pytest.mark.parametrize("old", [False, True])
def test_killed_at_random_moments(tmp_path: Path, source: Path, old: bool) -> None:
    target = tmp_path / "target.vhdx"
    expected, before = content(source), b""
    if old:
        create_image(target, MIB, format="vhdx")
        before = content(target)
    rng = random.Random(2)
    command = [sys.executable, "-m", "sublet", "disk", "convert", "--force", str(source), str(target)]
    for _ in range(5):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.2, 1.2))
        process.kill()
        process.wait()
        if target.exists():
            assert content(target) in (before, expected)
    subprocess.run(command, check=True, capture_output=True)
    assert content(target) == expected


def test_what_is_moved_in_is_stable_before(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash of the host the data is there: files are synced, moved, then the folder is synced."""
    events: list[tuple[str, int]] = []
    fsync, replace = os.fsync, Path.replace

    def logged_fsync(fd: int) -> None:
        events.append(("sync", os.fstat(fd).st_ino))
        fsync(fd)

    def logged_replace(self: Path, other: Path) -> Path:
        events.append(("move", self.stat().st_ino))
        return replace(self, other)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "replace", logged_replace)
    with open_image(source, readonly=True) as image:
        convert(image, tmp_path / "disk.vmdk", format="vmdk", options={"subformat": "monolithicFlat"})
    files = [number for kind, number in events if kind == "move"]
    assert len(files) == 2
    kinds = [kind for kind, _ in events]
    first, last = kinds.index("move"), len(kinds) - 1 - kinds[::-1].index("move")
    assert {number for kind, number in events[:first] if kind == "sync"} >= set(files)
    assert ("sync", tmp_path.stat().st_ino) in events[last:]
