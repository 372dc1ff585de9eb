"""VDI images that we make, judged by QEMU; and images that QEMU makes, read and changed by us."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conformance.block.judges import assert_qemu_reads, content, needs_qemu, qemu_img, qemu_info

from sublet.block import create_image, open_image

MIB, TIB = 1 << 20, 1 << 40
SIZES = [0, 512, MIB, 5 * MIB + 512, 130 * MIB]

pytestmark = needs_qemu


@pytest.mark.parametrize("static", ["on", "off"])
@pytest.mark.parametrize("size", SIZES)
def test_qemu_reads_what_we_write(tmp_path: Path, size: int, static: str) -> None:
    if static == "on" and size > 10 * MIB:
        size = 10 * MIB
    path, data = tmp_path / "disk.vdi", content(min(size, 10 * MIB), size)
    create_image(path, size, format="vdi", options={"static": static})
    with open_image(path, format="vdi") as disk:
        disk.write(0, data)
    info = qemu_info(path, "vdi")
    assert info["virtual-size"] == size
    if size <= 10 * MIB:
        assert_qemu_reads(path, "vdi", data)


@pytest.mark.parametrize("static", ["on", "off"])
@pytest.mark.parametrize("size", [512, 5 * MIB + 512])
def test_we_read_and_change_what_qemu_writes(tmp_path: Path, size: int, static: str) -> None:
    plain, path = tmp_path / "plain.raw", tmp_path / "disk.vdi"
    data = bytearray(content(size, 1))
    plain.write_bytes(data)
    qemu_img("convert", "-f", "raw", "-O", "vdi", "-o", f"static={static}", plain, path)
    with open_image(path, format="vdi") as disk:
        assert disk.read(0, disk.size) == data
        assert disk.check().clean
        disk.write(size - 512, b"new" * 100)
        disk.resize(size + 200 * MIB)
        disk.resize(size + MIB)
    data[size - 512 : size - 212] = b"new" * 100
    assert_qemu_reads(path, "vdi", bytes(data) + bytes(MIB))


def test_a_disk_of_3_tib_is_sparse(tmp_path: Path) -> None:
    path = tmp_path / "disk.vdi"
    create_image(path, 3 * TIB, format="vdi")
    with open_image(path, format="vdi") as disk:
        disk.write(3 * TIB - 512, b"end" * 170)
        assert len(list(disk.extents())) < 10
    assert qemu_info(path, "vdi")["virtual-size"] == 3 * TIB
    assert path.stat().st_blocks * 512 < 20 * MIB
    qemu_img("check", "-f", "vdi", path)
