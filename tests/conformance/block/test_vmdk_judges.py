"""VMDK disks that we make, judged by QEMU and libvmdk; and disks that QEMU makes, read and changed by us."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tests.conformance.block.judges import assert_qemu_reads, content, needs_qemu, qemu_img, qemu_info

from sublet.block import create_image, open_image

MIB, TIB = 1 << 20, 1 << 40
KINDS = [
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
]
ESX = ["vmfs", "vmfsSparse"]

pytestmark = needs_qemu


@pytest.mark.parametrize("kind", KINDS + ESX)
@pytest.mark.parametrize("size", [512, MIB, 5 * MIB + 512])
def test_qemu_reads_what_we_write(tmp_path: Path, kind: str, size: int) -> None:
    path, data = tmp_path / "disk.vmdk", content(size, size)
    create_image(path, size, format="vmdk", options={"subformat": kind})
    with open_image(path, format="vmdk") as disk:
        disk.write(0, data)
        disk.flush()
        disk.write(0, data[: size // 2])
    assert qemu_info(path, "vmdk")["virtual-size"] == size
    assert_qemu_reads(path, "vmdk", data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [512, 5 * MIB + 512])
def test_we_read_and_change_what_qemu_writes(tmp_path: Path, kind: str, size: int) -> None:
    plain, path = tmp_path / "plain.raw", tmp_path / "disk.vmdk"
    data = bytearray(content(size, 1))
    plain.write_bytes(data)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={kind}", plain, path)
    with open_image(path, format="vmdk") as disk:
        assert disk.read(0, disk.size) == data
        assert disk.check().clean
        disk.write(size - 512, b"new" * 100)
        disk.resize(size + 200 * MIB)
        disk.resize(size + MIB)
    data[size - 512 : size - 212] = b"new" * 100
    assert_qemu_reads(path, "vmdk", bytes(data) + bytes(MIB))


@pytest.mark.parametrize("zeroed", ["on", "off"])
@pytest.mark.parametrize("kind", ["monolithicSparse", "twoGbMaxExtentSparse"])
def test_qemu_reads_our_overlay_on_its_disk(tmp_path: Path, kind: str, zeroed: str) -> None:
    plain, base, path = tmp_path / "plain.raw", tmp_path / "base.vmdk", tmp_path / "disk.vmdk"
    data = bytearray(content(3 * MIB, 2))
    plain.write_bytes(data)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", plain, base)
    create_image(path, None, format="vmdk", backing=base, options={"subformat": kind, "zeroed_grain": zeroed})
    with open_image(path, format="vmdk") as disk:
        disk.write_zeroes(MIB, MIB + 100)
        disk.write(0, b"ours" * 1000)
    data[MIB : 2 * MIB + 100] = bytes(MIB + 100)
    data[:4000] = b"ours" * 1000
    assert_qemu_reads(path, "vmdk", bytes(data))


def test_we_read_an_overlay_of_qemu(tmp_path: Path) -> None:
    plain, base, path = tmp_path / "plain.raw", tmp_path / "base.vmdk", tmp_path / "disk.vmdk"
    data = content(3 * MIB, 3)
    plain.write_bytes(data)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", plain, base)
    qemu_img("create", "-f", "vmdk", "-b", base, "-F", "vmdk", path)
    with open_image(path, format="vmdk", readonly=True) as disk:
        assert disk.read(0, disk.size) == data
        assert disk.backing is not None


@pytest.mark.parametrize("kind", ["monolithicSparse", "twoGbMaxExtentSparse", "streamOptimized"])
def test_a_disk_of_more_than_2_tib_is_sparse(tmp_path: Path, kind: str) -> None:
    size = 2 * TIB + 512 if kind != "twoGbMaxExtentSparse" else 20 << 30
    path = tmp_path / "disk.vmdk"
    create_image(path, size, format="vmdk", options={"subformat": kind})
    with open_image(path, format="vmdk") as disk:
        disk.write(size - 512, b"end" * 170)
    with open_image(path, format="vmdk", readonly=True) as disk:
        assert disk.read(size - 512, 510) == b"end" * 170
    assert qemu_info(path, "vmdk")["virtual-size"] == size
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir()) < 20 * MIB


@pytest.mark.skipif(shutil.which("vmdkinfo") is None, reason="libvmdk-utils is not installed")
@pytest.mark.parametrize("kind", [*KINDS, *ESX])
def test_libvmdk_reads_our_descriptors_and_extents(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "disk.vmdk"
    create_image(path, 5 * MIB, format="vmdk", options={"subformat": kind})
    with open_image(path, format="vmdk") as disk:
        disk.write(MIB, b"x" * MIB)
    result = subprocess.run(["vmdkinfo", str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, (result.stdout, result.stderr)
    assert "5242880 bytes" in result.stdout
