"""QCOW2 as QEMU and libqcow see it: their images read by us, ours by them."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from sublet.block import Image, create_image, open_image

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40
SIZES = [0, 512, MIB + 512, 5 * MIB, 3 * TIB + 512]
OPTIONS = [
    {},
    {"compat": "0.10"},
    {"cluster_size": "4K", "refcount_bits": "64"},
    {"cluster_size": "2M", "lazy_refcounts": "on"},
    {"compression_type": "zstd", "refcount_bits": "1"},
    {"extended_l2": "on", "cluster_size": "128K"},
]


def qemu_img(*words: str | Path) -> str:
    """What ``qemu-img`` prints; it must succeed."""
    result = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"{words}: {result.stdout}{result.stderr}"
    return result.stdout


def write_pattern(image: Image, seed: int) -> None:
    """Data at both ends and in the middle, some of it in odd places."""
    rng = random.Random(seed)
    for place in (0, image.size // 3, image.size - 70_000):
        offset = max(0, min(place, image.size))
        size = min(70_000, image.size - offset)
        image.write(offset, rng.randbytes(size))


def pairs() -> list[tuple[int, dict[str, str]]]:
    """Sizes by options, but for those whose tables would be too large."""
    return [
        (size, options)
        for size, options in itertools.product(SIZES, OPTIONS)
        if size < TIB or options.get("cluster_size") != "4K"
    ]


@pytest.mark.parametrize(("size", "options"), pairs())
def test_our_images(tmp_path: Path, size: int, options: dict[str, str]) -> None:
    path = tmp_path / "ours.qcow2"
    create_image(path, size, format="qcow2", options=options)
    qemu_img("check", path)
    with open_image(path) as image:
        write_pattern(image, size)
        image.write_zeroes(size // 2, min(100_000, size - size // 2))
    qemu_img("check", path)
    info = json.loads(qemu_img("info", "--output=json", path))
    assert (info["format"], info["virtual-size"]) == ("qcow2", size)
    with open_image(path, readonly=True) as image:
        assert image.info().cluster_size == info["cluster-size"]
        content = image.read(0, size) if size < TIB else b""
    if content:
        qemu_img("convert", "-O", "raw", path, tmp_path / "theirs.raw")
        assert (tmp_path / "theirs.raw").read_bytes() == content


@pytest.mark.parametrize(("size", "options"), pairs())
def test_their_images(tmp_path: Path, size: int, options: dict[str, str]) -> None:
    path = tmp_path / "theirs.qcow2"
    words = [f"{name}={value}" for name, value in options.items()]
    qemu_img("create", "-q", "-f", "qcow2", *(["-o", ",".join(words)] if words else []), path, str(size))
    if size:
        script = [
            f"write -P {byte} {at} 512" for byte, at in ((1, 0), (2, size // 1024 * 512), (3, size - 512))
        ]
        commands = [word for line in script for word in ("-c", line)]
        subprocess.run(["qemu-io", "-f", "qcow2", *commands, path], check=True, capture_output=True)
    with open_image(path) as image:
        assert image.size == size
        if size:
            assert image.read(size - 512, 512) == b"\3" * 512
            write_pattern(image, 1)
        assert image.check().clean
    qemu_img("check", path)


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_compressed_both_ways(tmp_path: Path, compression: str) -> None:
    raw = tmp_path / "text.raw"
    raw.write_bytes(b"".join(f"{number:08d}\n".encode() for number in range(200_000)).ljust(2 * MIB, b"\0"))
    theirs, ours = tmp_path / "theirs.qcow2", tmp_path / "ours.qcow2"
    option = f"compression_type={compression}"
    qemu_img("convert", "-c", "-O", "qcow2", "-o", option, raw, theirs)
    with open_image(theirs) as image:
        assert image.read(0, 2 * MIB) == raw.read_bytes()
        image.write(100, b"over")
    qemu_img("check", theirs)
    create_image(ours, 2 * MIB, format="qcow2", options={"compression_type": compression})
    with open_image(ours) as image:
        image.write_compressed(0, raw.read_bytes())
    qemu_img("check", ours)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, ours)
    assert ours.stat().st_size < MIB


def test_snapshots_both_ways(tmp_path: Path) -> None:
    path, out = tmp_path / "disk.qcow2", tmp_path / "out.raw"
    qemu_img("create", "-q", "-f", "qcow2", path, "4M")
    with open_image(path) as image:
        image.write(0, b"one" * 100_000)
        image.create_snapshot("ours")
        first = image.read(0, image.size)
        image.write(1000, b"two" * 100_000)
    qemu_img("snapshot", "-c", "theirs", path)
    with open_image(path) as image:
        second = image.read(0, image.size)
        image.write(0, b"three" * 100_000)
        assert [one.name for one in image.snapshots()] == ["ours", "theirs"]
    qemu_img("check", path)
    for name, expected in (("ours", first), ("theirs", second)):
        qemu_img("convert", "-l", f"snapshot.name={name}", "-O", "raw", path, out)
        assert out.read_bytes() == expected
    qemu_img("snapshot", "-a", "ours", path)
    qemu_img("check", path)
    with open_image(path) as image:
        assert image.read(0, image.size) == first
        image.revert_snapshot("theirs")
        assert image.read(0, image.size) == second
        image.delete_snapshot("ours")
    qemu_img("check", path)
    qemu_img("snapshot", "-d", "theirs", path)
    with open_image(path) as image:
        assert image.check().clean
        assert image.read(0, image.size) == second


def test_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # QEMU takes the data file's name from there
    path = tmp_path / "disk.qcow2"
    create_image(path, 2 * MIB, format="qcow2", options={"data_file": "data.raw", "data_file_raw": "on"})
    with open_image(path) as image:
        image.write(500_000, b"outside" * 1000)
        image.write_zeroes(502_000, 1000)
        content = image.read(0, image.size)
    qemu_img("check", path)
    assert (tmp_path / "data.raw").read_bytes() == content
    qemu_img("convert", "-O", "raw", path, "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == content


def test_overlay(tmp_path: Path) -> None:
    base, ours, theirs = tmp_path / "base.qcow2", tmp_path / "ours.qcow2", tmp_path / "theirs.qcow2"
    create_image(base, 3 * MIB, format="qcow2")
    with open_image(base) as image:
        image.write(0, b"b" * 2 * MIB)
    create_image(ours, None, format="qcow2", backing=base)
    with open_image(ours) as image:
        image.write(MIB + 1000, b"top")
        image.write_zeroes(0, 128 * KIB)
        content = image.read(0, image.size)
    qemu_img("convert", "-O", "raw", ours, tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == content
    qemu_img("create", "-q", "-f", "qcow2", "-b", "ours.qcow2", "-F", "qcow2", theirs)
    with open_image(theirs) as image:
        assert image.read(0, image.size) == content
    qemu_img("rebase", "-f", "qcow2", "-u", "-b", "", ours)
    with open_image(ours) as image:
        assert image.backing is None


def test_map_agrees(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    create_image(path, 8 * MIB, format="qcow2")
    with open_image(path) as image:
        write_pattern(image, 3)
        image.write_zeroes(MIB, 256 * KIB)
    theirs = json.loads(qemu_img("map", "--output=json", path))
    with open_image(path, readonly=True) as image:
        for row in theirs:
            extent = image.map(row["start"], row["length"])
            assert extent.status.value == ("data" if row["data"] else "zero")
            if row["data"]:
                assert extent.host_offset == row["offset"]


@pytest.mark.skipif(shutil.which("qcowinfo") is None, reason="qcowinfo is not installed")
def test_libqcow_reads_ours(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    create_image(path, 5 * MIB, format="qcow2")
    result = subprocess.run(["qcowinfo", str(path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "5242880 bytes" in result.stdout
