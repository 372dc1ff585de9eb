"""Layers on a device, and host files past the page cache."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from sublet.block import create_image, open_image
from sublet.block.hostfile import OsFiles
from sublet.block.layers import CopyOnRead, Throttle, Writethrough
from sublet.errors import HostRefused
from sublet.testing import RamDisk

MIB = 1 << 20


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_writethrough_flushes_every_change() -> None:
    disk = RamDisk(MIB)
    layer = Writethrough(disk)
    layer.write(0, b"x")
    layer.write_zeroes(0, 512)
    layer.discard(0, 512)
    assert disk.flushes == 3


@pytest.mark.parametrize(("limits", "size"), [({"iops": 100}, 512), ({"bytes_per_second": 51200}, 512)])
def test_throttle_keeps_the_rate(limits: dict[str, int], size: int) -> None:
    time = Time()
    layer = Throttle(RamDisk(MIB), clock=time.read, sleep=time.sleep, **limits)
    for number in range(200):
        layer.write(number * size, bytes(size))
    # 200 requests at 100 a second, less the burst of 0.1 s.
    assert time.now - 100 == pytest.approx(1.9, abs=0.02)


def test_throttle_lets_a_burst_pass() -> None:
    time = Time()
    layer = Throttle(RamDisk(MIB), iops=100, burst_s=0.5, clock=time.read, sleep=time.sleep)
    for _ in range(50):
        layer.read(0, 512)
    assert time.now == 100


def test_copy_on_read_fills_the_overlay(tmp_path: Path) -> None:
    base, path = tmp_path / "base.raw", tmp_path / "top.qcow2"
    base.write_bytes(b"b" * MIB)
    create_image(path, None, format="qcow2", backing=base)
    image = open_image(path)
    layer = CopyOnRead(image)
    assert layer.read(1000, 1000) == b"b" * 1000
    assert image.map(1000, 1000).depth == 0
    assert image.map(MIB // 2, 512).depth == 1
    layer.close()


@pytest.fixture
def direct(tmp_path: Path) -> OsFiles:
    (tmp_path / "probe").write_bytes(bytes(4096))
    try:
        os.close(os.open(tmp_path / "probe", os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the file system has no O_DIRECT")
    return OsFiles(direct=True)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_direct_access_at_any_alignment(tmp_path: Path, direct: OsFiles, format: str) -> None:
    path = tmp_path / f"disk.{format}"
    create_image(path, 3 * MIB + 512, format=format)
    model = bytearray(3 * MIB + 512)
    rng = random.Random(3)
    with open_image(path, files=direct) as image:
        for _ in range(100):
            offset = rng.randrange(len(model) // 512) * 512
            size = min(rng.choice([512, 4096, 8192, 65536, 2 * MIB]), len(model) - offset)
            if rng.random() < 0.3:
                offset, size = offset // 4096 * 4096, min(4096, len(model) - offset // 4096 * 4096)
            data = rng.randbytes(size)
            image.write(offset, data)
            model[offset : offset + size] = data
            assert image.read(offset, size) == data
        assert image.read(0, len(model)) == model
    with open_image(path) as image:
        assert image.size == len(model)
        assert image.read(0, len(model)) == model


def test_no_direct_access(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(4096))
    real = os.open

    def refuse(path: Path, flags: int, mode: int = 0) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostRefused, match="page cache"):
        open_image(tmp_path / "disk.raw", files=OsFiles(direct=True))
