"""QCOW2 images against a model of plain bytes, in every combination of features."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sublet.block import BlockStatus, Image, create_image, open_image
from sublet.errors import CorruptImage, HostRefused, ImageError, UsageError, WrongMoment

KIB, MIB = 1 << 10, 1 << 20
SIZE = 3 * MIB + 7 * 512
VARIANTS = {
    "default": {},
    "v2": {"compat": "0.10"},
    "tiny clusters": {"cluster_size": "512"},
    "large clusters": {"cluster_size": "2M"},
    "extended": {"extended_l2": "on", "cluster_size": "16K", "compression_type": "zstd"},
    "narrow counts": {"refcount_bits": "2", "cluster_size": "4K"},
    "wide counts": {"refcount_bits": "64", "cluster_size": "1K"},
    "data file": {"data_file": "data.raw"},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk.qcow2"


@pytest.fixture
def image(path: Path) -> Image:
    create_image(path, SIZE, format="qcow2")
    return open_image(path)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("with_parent", [False, True])
def test_random_operations_match_plain_bytes(
    tmp_path: Path, path: Path, variant: str, with_parent: bool
) -> None:
    rng = random.Random(f"{variant}{with_parent}")
    model = bytearray(SIZE)
    parent = None
    if with_parent:
        parent = tmp_path / "base.raw"
        held = rng.randbytes(MIB) + bytes(MIB) + rng.randbytes(64 * KIB)
        parent.write_bytes(held)
        model[: len(held)] = held
    create_image(path, SIZE, format="qcow2", options=VARIANTS[variant], backing=parent)
    image = open_image(path)
    for _ in range(60):
        offset = rng.randrange(SIZE)
        size = min(SIZE - offset, rng.choice([1, 512, 4096, 5000, 200_000]))
        image = _step(rng, image, path, model, offset, size)
    assert image.read(0, SIZE) == model
    assert image.check().clean
    image.close()
    with open_image(path, readonly=True) as again:
        assert again.read(0, SIZE) == model


def _step(rng: random.Random, image: Image, path: Path, model: bytearray, offset: int, size: int) -> Image:
    """One random operation on both; returns the image, which may be another now."""
    match rng.randrange(6):
        case 0 | 1:
            data = rng.randbytes(size)
            image.write(offset, data)
            model[offset : offset + size] = data
        case 2:
            image.write_zeroes(offset, size, unmap=rng.random() < 0.5)
            model[offset : offset + size] = bytes(size)
        case 3:
            image.discard(offset, size)
            model[offset : offset + size] = image.read(offset, size)
        case 4:
            assert image.read(offset, size) == model[offset : offset + size]
        case 5 if rng.random() < 0.3:
            image.close()
            return open_image(path)
        case _:
            cluster = image.info().cluster_size or 1
            offset = offset // cluster * cluster
            data = (b"text" * cluster)[: min(SIZE - offset, cluster * 2)]
            image.write_compressed(offset, data)
            model[offset : offset + len(data)] = data
    return image


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "data file"])
def test_snapshots(path: Path, variant: str) -> None:
    rng = random.Random(variant)
    create_image(path, SIZE, format="qcow2", options=VARIANTS[variant])
    states: dict[str, bytes] = {}
    with open_image(path) as image:
        for name in ("one", "two"):
            image.write(rng.randrange(SIZE - 100_000), rng.randbytes(100_000))
            image.create_snapshot(name)
            states[name] = image.read(0, SIZE)
        image.write(0, rng.randbytes(MIB))
        image.revert_snapshot("one")
        assert image.read(0, SIZE) == states["one"]
        image.write(5000, b"after")
        image.revert_snapshot("two")
        assert image.read(0, SIZE) == states["two"]
        image.delete_snapshot("one")
        assert [one.name for one in image.snapshots()] == ["two"]
        image.write(0, b"more")
        assert image.check().clean
    with open_image(path) as image:
        image.revert_snapshot("2")
        assert image.read(0, SIZE) == states["two"]
        image.delete_snapshot("two")
        assert image.check().clean


def test_snapshot_names(image: Image) -> None:
    image.create_snapshot("one")
    for wrong in ("one", ""):
        with pytest.raises(UsageError):
            image.create_snapshot(wrong)
    with pytest.raises(UsageError, match="it has: one"):
        image.revert_snapshot("two")
    image.close()


def test_counts_too_narrow_for_a_snapshot(path: Path) -> None:
    create_image(path, SIZE, format="qcow2", options={"refcount_bits": "1"})
    with open_image(path) as image:
        image.write(0, b"data")
        with pytest.raises(UsageError, match="too narrow"):
            image.create_snapshot("one")
        assert image.read(0, 4) == b"data"
        assert image.check().clean


@pytest.mark.parametrize("options", [{}, {"cluster_size": "512"}, {"data_file": "data.raw"}])
def test_resize_shows_zeroes(path: Path, options: dict[str, str]) -> None:
    create_image(path, MIB, format="qcow2", options=options)
    with open_image(path) as image:
        image.write(0, b"x" * MIB)
        image.resize(300 * KIB + 512)
        image.resize(70 * MIB)
        assert image.read(0, MIB) == (b"x" * (300 * KIB + 512)).ljust(MIB, b"\0")
        image.write(70 * MIB - 4, b"last")
        assert image.check().clean
    with open_image(path) as image:
        assert image.size == 70 * MIB
        assert image.read(70 * MIB - 4, 4) == b"last"


def test_growing_hides_a_longer_parent(tmp_path: Path, path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"p" * MIB)
    create_image(path, 64 * KIB, format="qcow2", backing=tmp_path / "base.raw")
    with open_image(path) as image:
        image.resize(2 * MIB)
        assert image.read(0, 2 * MIB) == (b"p" * 64 * KIB).ljust(2 * MIB, b"\0")


def test_map_tells_where(tmp_path: Path, path: Path) -> None:
    (tmp_path / "base.raw").write_bytes(b"p" * MIB)
    create_image(path, MIB, format="qcow2", backing=tmp_path / "base.raw")
    with open_image(path) as image:
        image.write(128 * KIB, b"x" * 64 * KIB)
        image.write_zeroes(256 * KIB, 64 * KIB)
        below = image.map(0, MIB)
        assert (below.size, below.depth, below.host_offset) == (128 * KIB, 1, 0)
        own = image.map(128 * KIB, MIB - 128 * KIB)
        assert (own.size, own.depth, own.file) == (64 * KIB, 0, path)
        assert own.host_offset is not None
        zero = image.map(256 * KIB, MIB - 256 * KIB)
        assert (zero.size, zero.status, zero.present) == (64 * KIB, BlockStatus.ZERO, True)
    assert path.read_bytes()[own.host_offset :][: 64 * KIB] == b"x" * 64 * KIB


def test_unflushed_leaks_are_repaired(path: Path, image: Image) -> None:
    image.write(0, b"x" * MIB)
    image.flush()
    counts = image.refcounts  # type: ignore[attr-defined]
    counts.allocate(3)
    counts.write_blocks()
    report = image.check(repair=True)
    assert (report.errors, report.leaks, report.leaks_repaired) == (0, 3, 3)
    assert image.check().clean
    image.close()


def test_repair_of_lost_counts(path: Path, image: Image) -> None:
    image.write(0, b"x" * MIB)
    image.create_snapshot("s")
    image.write(0, b"y" * MIB)
    image.close()
    with open_image(path, readonly=True) as found:
        offset = found.refcounts.table[0]  # type: ignore[attr-defined]
    content = bytearray(path.read_bytes())
    content[offset : offset + 65536] = bytes(65536)
    path.write_bytes(content)
    with open_image(path, check=True) as damaged:
        report = damaged.check(repair=True)
        assert report.errors == report.errors_repaired > 0
    with open_image(path) as mended:
        assert mended.read(0, MIB) == b"y" * MIB
        mended.revert_snapshot("s")
        assert mended.read(0, MIB) == b"x" * MIB


def test_dirty_image_is_repaired_on_opening(path: Path, image: Image) -> None:
    image.write(0, b"x" * MIB)
    image.close()
    content = bytearray(path.read_bytes())
    content[79] |= 1  # incompatible_features, bit 0: refcounts may be too low
    path.write_bytes(content)
    with open_image(path, readonly=True) as looked_at:
        assert looked_at.info().dirty
    with open_image(path) as mended:
        assert not mended.info().dirty
        assert mended.read(0, MIB) == b"x" * MIB


def test_read_only_and_closed(path: Path, image: Image) -> None:
    image.write(0, b"x")
    image.close()
    image.close()
    with pytest.raises(WrongMoment):
        image.write(0, b"x")
    with open_image(path, readonly=True) as readonly:
        assert readonly.read(0, 1) == b"x"
        for attempt in (
            lambda: readonly.write(0, b"y"),
            lambda: readonly.write_zeroes(0, 512),
            lambda: readonly.resize(512),
            lambda: readonly.create_snapshot("s"),
            lambda: readonly.check(repair=True),
        ):
            with pytest.raises(WrongMoment):
                attempt()
        with pytest.raises(UsageError):
            readonly.read(SIZE, 1)


def test_only_one_writer(path: Path, image: Image) -> None:
    with pytest.raises(HostRefused, match="in use"):
        open_image(path)
    image.close()


@pytest.mark.parametrize(
    "options",
    [
        {"cluster_size": "3000"},
        {"cluster_size": "4M"},
        {"compat": "2"},
        {"refcount_bits": "3"},
        {"compression_type": "lz4"},
        {"extended_l2": "on", "cluster_size": "8K"},
        {"compat": "0.10", "compression_type": "zstd"},
        {"data_file_raw": "on"},
        {"colour": "red"},
        {"lazy_refcounts": "yes"},
    ],
)
def test_options_that_cannot_be(path: Path, options: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        create_image(path, SIZE, format="qcow2", options=options)
    assert not path.exists()


def test_too_large_for_its_clusters(path: Path) -> None:
    with pytest.raises(UsageError, match="larger clusters"):
        create_image(path, 1 << 50, format="qcow2", options={"cluster_size": "512"})
    assert not path.exists()


FIELDS = {
    "version": (4, 4, 9),
    "cluster_bits": (20, 4, 22),
    "size": (24, 8, 513),
    "crypt_method": (32, 4, 1),
    "l1_size": (36, 4, 0xFFFFFFFF),
    "l1_table_offset": (40, 8, 12345),
    "L1 table": (40, 8, 1 << 40),
    "refcount_table_offset": (48, 8, 77),
    "refcount_table_clusters": (56, 4, 0xFFFFFFFF),
    "nb_snapshots": (60, 4, 0xFFFFFFFF),
    "incompatible_features": (72, 8, 1 << 40),
    "refcount_order": (96, 4, 7),
    "header_length": (100, 4, 13),
    "backing_file_size": (8, 8, 1 << 40),
}


@pytest.mark.parametrize("field", FIELDS)
def test_damaged_headers_name_the_field(path: Path, image: Image, field: str) -> None:
    image.close()
    offset, width, value = FIELDS[field]
    content = bytearray(path.read_bytes())
    content[offset : offset + width] = value.to_bytes(width, "big")
    path.write_bytes(content)
    with pytest.raises(ImageError, match=field):
        open_image(path)


def test_l2_entry_between_clusters(path: Path, image: Image) -> None:
    image.write(0, b"x" * 65536)
    image.close()
    content = bytearray(path.read_bytes())
    with open_image(path, readonly=True) as found:
        l2 = found.tables.l1[0] & ~(1 << 63)  # type: ignore[attr-defined]
    content[l2 + 6] |= 2
    path.write_bytes(content)
    with open_image(path) as damaged:
        with pytest.raises(CorruptImage, match="L2 entry"):
            damaged.read(0, 512)
        report = damaged.check(repair=True)
        assert report.errors == report.errors_repaired > 0
        assert damaged.read(0, 512) == bytes(512)
