"""Disks of every size, made by us and read by QEMU, made by QEMU and read by us."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.conformance.block.judges import needs_qemu, qemu_img, qemu_info

from sublet.block import create_image, open_image

pytestmark = needs_qemu

MIB, TIB = 1 << 20, 1 << 40
QEMU_NAMES = {"vhd": "vpc"}
CHECKABLE = ("qcow2", "vdi", "vmdk", "vhdx")
SIZES = {
    "raw": (0, 512, 3 * MIB + 512, 3 * TIB),
    "qcow2": (0, 512, 3 * MIB + 512, 3 * TIB),
    "vdi": (512, 3 * MIB + 512, 3 * TIB),
    "vmdk": (512, 3 * MIB + 512, 3 * TIB),
    "vhd": (512, 3 * MIB + 512, 2040 * 1024 * MIB),
    "vhdx": (3 * MIB + 512, 3 * TIB),
}
"""Bytes. Not every format knows every size: a VHD ends at 2040 GiB, and QEMU makes no VHDX of a sector."""
CASES = [(format, size) for format, sizes in SIZES.items() for size in sizes]


@pytest.mark.parametrize(("format", "size"), CASES)
def test_ours_in_qemu_img(tmp_path: Path, format: str, size: int) -> None:
    path, name = tmp_path / f"disk.{format}", QEMU_NAMES.get(format, format)
    create_image(path, size, format=format)
    with open_image(path) as image:
        for offset in places(size):
            image.write(offset, b"S" * 512)
    if format in CHECKABLE:
        qemu_img("check", "-q", "-f", name, path)
    facts = qemu_info(path, name)
    # QEMU takes a VHD's size from its geometry unless the creator is known: it may be a little larger.
    assert size <= facts["virtual-size"] <= size + (MIB if format == "vhd" else 0)
    for offset in places(size):
        pattern = f"read -P 0x53 {offset} 512"
        said = subprocess.run(
            ["qemu-io", "-r", "-f", name, "-c", pattern, path], capture_output=True, text=True
        )
        assert "verification failed" not in said.stdout
        assert "read 512/512" in said.stdout, said.stdout + said.stderr


@pytest.mark.parametrize(("format", "size"), CASES)
def test_qemus_here(tmp_path: Path, format: str, size: int) -> None:
    path, name = tmp_path / f"disk.{format}", QEMU_NAMES.get(format, format)
    qemu_img("create", "-q", "-f", name, path, str(size))
    for offset in places(size):
        subprocess.run(
            ["qemu-io", "-f", name, "-c", f"write -P 0x51 {offset} 512", path],
            check=True,
            capture_output=True,
        )
    with open_image(path) as image:
        assert size <= image.size <= size + (16 * MIB if format == "vhd" else 0)
        for offset in places(size):
            assert image.read(offset, 512) == b"Q" * 512
        assert image.check().clean
        if size:
            image.write(0, b"S" * 512)
    if format in CHECKABLE:
        qemu_img("check", "-q", "-f", name, path)


def places(size: int) -> list[int]:
    """First, middle and last sector."""
    return sorted({0, size // 1024 * 512, size - 512}) if size else []
