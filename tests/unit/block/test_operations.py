"""Work on whole images."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from sublet.block import Image, create_image, open_image
from sublet.block.operations import commit, compact, compare, convert, copy_range, rebase
from sublet.block.raw import RawImage
from sublet.errors import HostRefused, UsageError

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """5 MiB and an odd end: data, a hole, zeroes that are data, data."""
    path = tmp_path / "source.raw"
    rng = random.Random(5)
    with path.open("wb") as file:
        file.write(rng.randbytes(MIB + 300))
        file.seek(3 * MIB)
        file.write(bytes(MIB) + rng.randbytes(MIB - 512))
    return path


@pytest.mark.parametrize("compress", [False, True])
def test_convert_there_and_back(tmp_path: Path, raw: Path, compress: bool) -> None:
    qcow2, back = tmp_path / "out.qcow2", tmp_path / "back.raw"
    steps: list[tuple[int, int]] = []
    with open_image(raw, readonly=True) as source:
        convert(source, qcow2, format="qcow2", compress=compress, progress=lambda *at: steps.append(at))
    assert steps[-1] == (raw.stat().st_size, raw.stat().st_size)
    with open_image(qcow2, readonly=True) as source:
        assert source.check().clean
        convert(source, back, format="raw")
    assert back.read_bytes() == raw.read_bytes()
    assert qcow2.stat().st_size < 3 * MIB
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.raw", "out.qcow2", "source.raw"]


def test_convert_leaves_nothing_behind(tmp_path: Path, raw: Path) -> None:
    target = tmp_path / "out.qcow2"
    target.write_bytes(b"precious")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with open_image(raw, readonly=True) as source:
        with pytest.raises(HostRefused, match="exists"):
            convert(source, target, format="qcow2")
        with pytest.raises(KeyboardInterrupt):
            convert(source, target, format="qcow2", replace=True, progress=interrupt)
    assert target.read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.qcow2", "source.raw"]


def test_convert_says_what_the_host_refused(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = os.open("/dev/full", os.O_RDWR)
    monkeypatch.setattr(RawImage, "place", lambda self, ranges: [(full, at, size) for at, size in ranges])
    target = tmp_path / "out.raw"
    with open_image(raw, readonly=True) as source:
        with pytest.raises(HostRefused, match=r"into .*out\.raw: No space left on device"):
            convert(source, target, format="raw")
    os.close(full)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.raw"]


def test_compare_finds_the_byte(tmp_path: Path, raw: Path) -> None:
    other = tmp_path / "other.qcow2"
    with open_image(raw, readonly=True) as source:
        convert(source, other, format="qcow2")
        with open_image(other) as image:
            assert compare(source, image, strict=True) is None
            image.write(4 * MIB + 17, b"\xff\xfe\xff")
            found = compare(source, image)
            assert found is not None
            assert found.offset in (4 * MIB + 17, 4 * MIB + 18)
            image.write(4 * MIB + 17, source.read(4 * MIB + 17, 3))
            image.resize(8 * MIB)
            assert compare(source, image) is None
            strict = compare(source, image, strict=True)
            assert strict is not None
            assert "sizes" in strict.reason


@pytest.fixture
def pair(tmp_path: Path, raw: Path) -> tuple[Path, Path]:
    """An overlay on ``raw`` with data, zeroes and nothing of its own; and where it is."""
    path = tmp_path / "overlay.qcow2"
    create_image(path, 6 * MIB, format="qcow2", backing=raw)
    with open_image(path) as image:
        image.write(100, b"new")
        image.write_zeroes(3 * MIB, 2 * MIB)
        image.write(6 * MIB - 512, b"e" * 512)
    return path, raw


def content(path: Path, **how: bool) -> bytes:
    with open_image(path, readonly=True, **how) as image:
        return image.read(0, image.size)


@pytest.mark.parametrize("keep", [False, True])
def test_commit(pair: tuple[Path, Path], keep: bool) -> None:
    overlay, parent = pair
    before = content(overlay)
    assert commit(overlay, keep=keep) == parent
    assert content(parent) == before == content(overlay)
    with open_image(overlay, readonly=True, parents=False) as image:
        assert image.own_map(0, image.size).present is keep
        assert image.check().clean


@pytest.mark.parametrize("format", ["qcow2", "vdi", "vmdk", "vhd", "vhdx"])
@pytest.mark.parametrize("keep", [False, True])
def test_an_overlay_goes_on_after_a_commit(tmp_path: Path, format: str, keep: bool) -> None:
    """Also where it notes the state of its parent, which has changed."""
    base, top = tmp_path / f"base.{format}", tmp_path / f"top.{format}"
    create_image(base, 8 * MIB, format=format)
    create_image(top, None, format=format, backing=base)
    with open_image(top) as image:
        image.write(MIB + 512, b"hello" * 1000)
    before = content(top)
    commit(top, keep=keep)
    assert content(top) == content(base) == before
    with open_image(top) as image:
        assert image.check().clean
        image.write(2 * MIB, b"more".ljust(512))
        assert image.read(MIB + 512, 5) == b"hello"


def test_commit_without_parent(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(UsageError, match="no parent"):
        commit(raw)


def test_rebase_keeps_the_content(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    overlay, _ = pair
    other = tmp_path / "other.raw"
    other.write_bytes(random.Random(9).randbytes(7 * MIB))
    before = content(overlay)
    rebase(overlay, other)
    assert content(overlay) == before
    rebase(overlay, None)
    other.unlink()
    assert content(overlay) == before


def test_unsafe_rebase_only_renames(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    overlay, parent = pair
    before = content(overlay)
    moved = parent.rename(tmp_path / "a-much-longer-name-for-the-same-old-file.raw")
    rebase(overlay, moved, unsafe=True)
    assert content(overlay) == before


def test_compact_frees_zeroes(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    create_image(path, 4 * MIB, format="qcow2")
    with open_image(path) as image:
        image.write(0, b"x" * 2 * MIB)
        image.write(MIB, bytes(MIB))
        compact(image)
        assert present(image) == MIB
        assert image.read(0, 4 * MIB) == (b"x" * MIB).ljust(4 * MIB, b"\0")
        assert image.check().clean


def present(image: Image) -> int:
    return sum(extent.size for extent in image.extents() if extent.status.value == "data")


def test_a_range_is_copied_and_its_zeroes_take_no_storage(tmp_path: Path) -> None:
    one, other = tmp_path / "one.qcow2", tmp_path / "other.vhdx"
    for path in (one, other):
        create_image(path, 16 * MIB, format=path.suffix[1:])
    with open_image(one) as source, open_image(other) as target:
        source.write(5 * MIB, b"x" * MIB)
        target.write(9 * MIB + 512, b"old" * 1000)
        copy_range(source, 4 * MIB + 512, target, 8 * MIB, 4 * MIB + 1024)
        assert target.read(8 * MIB, 4 * MIB + 1024) == source.read(4 * MIB + 512, 4 * MIB + 1024)
        assert not any(target.read(0, 8 * MIB))
        before = target.info().allocated
        copy_range(source, 10 * MIB, target, 0, 4 * MIB)
        assert target.info().allocated <= before
        with pytest.raises(UsageError, match="outside"):
            copy_range(source, 15 * MIB, target, 0, 2 * MIB)
