"""Which parents an image may have, and what format a file is taken for."""

from __future__ import annotations

from pathlib import Path

import pytest

from sublet.block import create_image, open_image
from sublet.block.registry import FORMATS, SUFFIXES, find_format
from sublet.errors import HostRefused, ImageError, UnsupportedImage, UsageError

MIB = 1 << 20


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.qcow2"
    create_image(path, MIB, format="qcow2")
    with open_image(path) as image:
        image.write(0, b"base")
    return path


def overlay(path: Path, parent: Path) -> Path:
    create_image(path, None, format="qcow2", backing=parent)
    return path


def rename_parent(path: Path, name: bytes) -> None:
    """Write another name of the same length over the parent's."""
    content = path.read_bytes()
    assert content.count(b"base.qcow2") == 1
    path.write_bytes(content.replace(b"base.qcow2", name.ljust(10, b"\0")))


def test_overlay_reads_through(tmp_path: Path, base: Path) -> None:
    middle = overlay(tmp_path / "middle.qcow2", base)
    with open_image(overlay(tmp_path / "top.qcow2", middle)) as image:
        assert image.read(0, 4) == b"base"
        image.write(1, b"ump")
        assert image.read(0, 4) == b"bump"
    with open_image(base) as image:
        assert image.read(0, 4) == b"base"


def test_parents_are_shared_but_not_writable(tmp_path: Path, base: Path) -> None:
    first = open_image(overlay(tmp_path / "one.qcow2", base))
    second = open_image(overlay(tmp_path / "two.qcow2", base))
    with pytest.raises(HostRefused, match="in use"):
        open_image(base)
    first.close()
    second.close()


def test_cycle(tmp_path: Path, base: Path) -> None:
    one = overlay(tmp_path / "other.qcow2", base)
    base.unlink()
    (tmp_path / "base.qcow2").hardlink_to(one)
    with pytest.raises(ImageError, match="itself"):
        open_image(one)


def test_missing_parent(tmp_path: Path, base: Path) -> None:
    top = overlay(tmp_path / "top.qcow2", base)
    base.unlink()
    with pytest.raises(ImageError, match="needs its parent"):
        open_image(top)


@pytest.mark.parametrize("name", [b"/etc/hosts", b"../passwd"])
def test_parent_outside_the_allowed_folders(tmp_path: Path, base: Path, name: bytes) -> None:
    top = overlay(tmp_path / "top.qcow2", base)
    rename_parent(top, name)
    with pytest.raises(ImageError, match=r"empty or not a path|outside the folders"):
        open_image(top)


def test_symbolic_link_out_of_the_allowed_folders(tmp_path: Path, base: Path) -> None:
    top = overlay(tmp_path / "top.qcow2", base)
    base.unlink()
    base.symlink_to("/etc/hosts")
    with pytest.raises(ImageError, match="outside the folders"):
        open_image(top)


def test_allowed_folder(tmp_path: Path, base: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    top = tmp_path / "elsewhere" / "top.qcow2"
    create_image(top, None, format="qcow2", backing=base)
    with pytest.raises(ImageError, match="outside the folders"):
        open_image(top)
    with open_image(top, folders=[tmp_path]) as image:
        assert image.read(0, 4) == b"base"


def test_parent_described_in_json(tmp_path: Path, base: Path) -> None:
    top = overlay(tmp_path / "top.qcow2", base)
    rename_parent(top, b"json:{   }")
    with pytest.raises(UnsupportedImage):
        open_image(top)


def test_parent_of_unknown_format(tmp_path: Path, base: Path) -> None:
    top = overlay(tmp_path / "top.qcow2", base)
    content = bytearray(top.read_bytes())
    place = content.index(b"\xe2\x79\x2a\xca")
    content[place : place + 4] = b"\x12\x34\x56\x78"
    top.write_bytes(content)
    with pytest.raises(ImageError, match="what format"):
        open_image(top)


def test_guest_cannot_turn_raw_into_something_else(tmp_path: Path, base: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(base.read_bytes())
    with open_image(raw) as image:
        assert image.format == "raw"
    unclear = tmp_path / "disk.img"
    unclear.write_bytes(base.read_bytes())
    with pytest.raises(UsageError, match="looks like a qcow2"):
        open_image(unclear)
    with open_image(unclear, format="raw") as image:
        assert image.format == "raw"
    with open_image(unclear, format="qcow2") as image:
        assert image.read(0, 4) == b"base"


def test_name_that_promises_too_much(tmp_path: Path) -> None:
    (tmp_path / "disk.qcow2").write_bytes(bytes(4096))
    with pytest.raises(ImageError, match="no qcow2 image"):
        open_image(tmp_path / "disk.qcow2")


@pytest.mark.parametrize("name", FORMATS)
def test_names_and_formats_agree(name: str) -> None:
    format_ = find_format(name)
    assert format_.name == name
    assert set(format_.extensions) == {suffix for suffix, of in SUFFIXES.items() if of == name}
