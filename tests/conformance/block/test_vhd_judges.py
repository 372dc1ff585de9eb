"""VHD and VHDX against tools that are not ours: images that they make, and images that they read."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from sublet.block import create_image, open_image

MIB = 1 << 20
QEMU = {"vhd": "vpc", "vhdx": "vhdx"}
SYSTEM_PYTHON = "/usr/bin/python3"

needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")

OURS: list[tuple[str, Mapping[str, str]]] = [
    ("vhd", {}),
    ("vhd", {"block_size": "4K"}),
    ("vhd", {"block_size": "512K"}),
    ("vhd", {"subformat": "fixed"}),
    ("vhdx", {}),
    ("vhdx", {"block_size": "1M"}),
    ("vhdx", {"block_size": "256M"}),
    ("vhdx", {"subformat": "fixed", "block_size": "1M"}),
]
SIZES = [512, 3 * 512, MIB - 512, 5 * MIB + 512]

# libvhdi 20210425 mixes up parent and child in reads of more, and sectors within a bitmap's byte; it takes no
# notice of the VHDX block state "zero". So: small reads, writes of 4 KiB, and no zeroed blocks in overlays.
READ_CHAIN = """
import pyvhdi, sys
files = []
for path in sys.argv[1:]:
    file = pyvhdi.file()
    file.open(path)
    if files:
        file.set_parent(files[-1])
    files.append(file)
top = files[-1]
for offset in range(0, top.get_media_size(), 4096):
    sys.stdout.buffer.write(top.read_buffer_at_offset(4096, offset))
"""


def run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, (command, result.stdout, result.stderr)
    return result.stdout


def have_pyvhdi() -> bool:
    try:
        return subprocess.run([SYSTEM_PYTHON, "-c", "import pyvhdi"], capture_output=True).returncode == 0
    except OSError:
        return False


needs_libvhdi = pytest.mark.skipif(not have_pyvhdi(), reason="python3-libvhdi is not installed")


def fill(path: Path, size: int, rng: random.Random) -> bytes:
    """Write here and there, in units of 4 KiB where the disk has as many; what the disk then holds."""
    model = bytearray(size)
    with open_image(path) as image:
        for _ in range(12):
            offset = rng.randrange(max(1, size // 4096)) * 4096
            data = rng.randbytes(min(4096 * rng.randrange(1, 200), size - offset))
            image.write(offset, data)
            model[offset : offset + len(data)] = data
    return bytes(model)


@needs_qemu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("format", "options"), OURS)
def test_qemu_reads_what_we_write(tmp_path: Path, format: str, options: Mapping[str, str], size: int) -> None:
    path, raw = tmp_path / f"disk.{format}", tmp_path / "disk.raw"
    create_image(path, size, format=format, options=options)
    raw.write_bytes(fill(path, size, random.Random(size)))
    run("qemu-img", "compare", "-f", QEMU[format], "-F", "raw", path, raw)
    if format == "vhdx":
        run("qemu-img", "check", "-f", "vhdx", path)


@needs_qemu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("format", ["vhd", "vhdx"])
def test_we_read_and_continue_what_qemu_writes(
    tmp_path: Path, format: str, subformat: str, size: int
) -> None:
    path, raw, copy = (tmp_path / name for name in (f"disk.{format}", "disk.raw", "copy.raw"))
    raw.write_bytes(random.Random(size).randbytes(size))
    options = f"subformat={subformat}" + (",force_size=on" if format == "vhd" else "")
    run("qemu-img", "convert", "-f", "raw", "-O", QEMU[format], "-o", options, raw, path)
    with open_image(path) as image:
        assert image.size == size
        assert image.read(0, size) == raw.read_bytes()
        assert not image.check().errors
        image.write(0, b"changed")
    run("qemu-img", "convert", "-f", QEMU[format], "-O", "raw", path, copy)
    assert copy.read_bytes() == b"changed" + raw.read_bytes()[7:]


@needs_qemu
@pytest.mark.parametrize(("format", "size"), [("vhd", 2040 << 30), ("vhdx", 3 << 40), ("vhdx", 64 << 40)])
def test_sparse_disks_of_the_largest_sizes(tmp_path: Path, format: str, size: int) -> None:
    path = tmp_path / f"disk.{format}"
    create_image(path, size, format=format)
    with open_image(path) as image:
        image.write(size - 512, b"e" * 512)
        image.write(size // 2, b"m" * 512)
    assert f"({size} bytes)" in run("qemu-img", "info", "-f", QEMU[format], path)
    assert path.stat().st_blocks * 512 < 64 * MIB
    with open_image(path, readonly=True) as image:
        assert image.check().clean
        assert image.read(size - 512, 512) == b"e" * 512
        held = [extent.offset for extent in image.extents() if extent.status.value == "data"]
    assert len(held) <= 4


@needs_libvhdi
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("vhd", {"block_size": "1M"}),
        ("vhdx", {"block_size": "1M"}),
        ("vhdx", {"block_size": "1M", "logical_sector_size": "4096"}),
    ],
)
def test_libvhdi_reads_our_differencing_disks(
    tmp_path: Path, format: str, options: Mapping[str, str]
) -> None:
    rng = random.Random(format)
    paths = [tmp_path / f"{name}.{format}" for name in ("base", "child", "grandchild")]
    for parent, path in zip([None, *paths], paths, strict=False):
        create_image(
            path, 6 * MIB if parent is None else None, format=format, options=options, backing=parent
        )
        fill(path, 6 * MIB, rng)
    with open_image(paths[-1], readonly=True) as image:
        expected = image.read(0, image.size)
    result = subprocess.run([SYSTEM_PYTHON, "-c", READ_CHAIN, *paths], capture_output=True)
    assert result.returncode == 0, result.stderr
    same = result.stdout == expected
    assert same, "libvhdi reads something else"


@pytest.mark.skipif(shutil.which("vhdiinfo") is None, reason="vhdiinfo is not installed")
@pytest.mark.parametrize(("format", "options"), OURS)
def test_vhdiinfo_names_our_disks(tmp_path: Path, format: str, options: Mapping[str, str]) -> None:
    path = tmp_path / f"disk.{format}"
    create_image(path, 5 * MIB, format=format, options=options)
    said = run("vhdiinfo", path)
    assert f"({5 * MIB} bytes)" in said
    assert ("Fixed" if options.get("subformat") == "fixed" else "Dynamic") in said
