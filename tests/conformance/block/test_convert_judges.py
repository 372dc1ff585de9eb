"""Conversions judged by QEMU: from every kind of source, and into every kind of target."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.conformance.block.judges import needs_qemu, qemu_img
from tests.conformance.block.variants import VARIANTS, Variant

from sublet.block import create_image, open_image
from sublet.block.operations import convert

pytestmark = needs_qemu

KIB, MIB = 1 << 10, 1 << 20
SIZE = 70 * MIB + 4096
"""More than the core is given at once."""
OVERLAYS = [name for name, variant in VARIANTS.items() if variant.parent]
ALONE = [name for name, variant in VARIANTS.items() if not variant.parent]


def scattered(seed: int) -> list[tuple[int, bytes]]:
    """Writes in no order: small and large, whole zeroes among them, the disk's end too."""
    rng = random.Random(seed)
    writes = [(SIZE - 4096, rng.randbytes(4096))]
    for _ in range(40):
        offset, size = rng.randrange(SIZE // 4096) * 4096, rng.choice([4096, 65536, 300 * KIB])
        size = min(size, SIZE - offset)
        writes.append((offset, bytes(size) if rng.random() < 0.2 else rng.randbytes(size)))
    return writes


def make_source(folder: Path, variant: Variant) -> tuple[Path, Path]:
    """An image, perhaps on a parent, and a raw file of what it holds."""
    plain, path = folder / "plain.img", folder / f"source.{variant.format}"
    layers = [(path, variant.format, variant.options)]
    if variant.parent:
        layers.insert(0, (folder / f"parent.{variant.parent}", variant.parent, variant.parent_options))
    with plain.open("wb") as file:
        file.truncate(SIZE)
        below: Path | None = None
        for seed, (place, format, options) in enumerate(layers):
            backing_format = variant.parent if below else None
            create_image(
                place,
                SIZE,
                format=format,
                options=dict(options),
                backing=below,
                backing_format=backing_format,
            )
            with open_image(place, format=format) as image:
                writes = scattered(seed)
                # A stream is written once, and in order.
                for offset, data in sorted(writes)[::7] if image.sequential else writes:
                    image.write(offset, data)
                    file.seek(offset)
                    file.write(data)
            below = place
    return path, plain


@pytest.mark.parametrize("name", VARIANTS)
def test_from_every_kind(tmp_path: Path, name: str) -> None:
    source, plain = make_source(tmp_path, VARIANTS[name])
    target = tmp_path / "target.qcow2"
    with open_image(source, format=VARIANTS[name].format, readonly=True) as image:
        convert(image, target, format="qcow2")
    qemu_img("compare", "-f", "qcow2", "-F", "raw", target, plain)
    qemu_img("check", "-f", "qcow2", target)
    assert target.stat().st_blocks * 512 < plain.stat().st_blocks * 512 + 8 * MIB


@pytest.mark.parametrize("name", ALONE)
def test_into_every_kind(tmp_path: Path, name: str) -> None:
    variant = VARIANTS[name]
    source, plain = make_source(tmp_path, VARIANTS["qcow2 overlay"])
    target = tmp_path / f"target.{variant.format}"
    with open_image(source, readonly=True) as image:
        convert(image, target, format=variant.format, options=dict(variant.options))
    with open_image(target, format=variant.format, readonly=True) as image:
        assert image.check().clean
        assert image.read(0, SIZE) == plain.read_bytes()
    if variant.qemu:
        qemu_img("compare", "-f", variant.qemu, "-F", "raw", target, plain)
    if variant.qemu and variant.checkable:
        qemu_img("check", "-f", variant.qemu, target)


def test_compressed_and_plain_clusters_together(tmp_path: Path) -> None:
    source, plain = make_source(tmp_path, VARIANTS["qcow2"])
    packed = tmp_path / "packed.qcow2"
    qemu_img("convert", "-c", "-f", "qcow2", "-O", "qcow2", source, packed)
    with open_image(packed) as image, plain.open("r+b") as file:
        for offset, data in scattered(9)[:10]:
            image.write(offset, data)
            file.seek(offset)
            file.write(data)
    with open_image(packed, readonly=True) as image:
        convert(image, tmp_path / "target.vdi", format="vdi")
    qemu_img("compare", "-f", "vdi", "-F", "raw", tmp_path / "target.vdi", plain)
