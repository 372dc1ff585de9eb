"""Mutated VHDX images (see ``disk_images``); checksums are taken as good so that fields get their turn."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import disk_images
from disk_images import Content, run

from sublet.block.chain import Chain
from sublet.block.description import BackingReference
from sublet.block.vhdx import FORMAT, layout, log
from sublet.testing.hostfile import MemoryFiles

FOLDER = Path("/disks")
PLACES = (0x10000, 0x20000, 0x30000, 0x40000, 0x100000, 0x180000, 0x200000, 0x210000, 0x300000)
"""Headers, region tables, log entries, metadata, BAT."""


def image(options: Mapping[str, str], *, parent: bool = False, crashed: bool = False) -> tuple[Path, Content]:
    """A small image with some data, and its parent; or one whose log was not emptied."""
    files = MemoryFiles()
    backing = None
    if parent:
        FORMAT.create(FOLDER / "base.vhdx", 2 << 20, options=options, backing=None, files=files)
        backing = BackingReference("base.vhdx", "vhdx")
    path = FOLDER / "disk.vhdx"
    FORMAT.create(path, 2 << 20, options=options, backing=backing, files=files)
    disk = FORMAT.open(path, readonly=False, chain=Chain.start(path, files=files, parents=False))
    disk.write(0, b"a" * 5000)
    disk.flush()
    disk.write(1 << 20, b"z" * 5000)
    disk.flush()
    if not crashed:
        disk.close()
    return path, {name: bytes(data) for name, data in files.content.items()}


def mutate(rng: random.Random, data: bytearray) -> None:
    """Change some fields of structures, which lie far apart, or cut the data."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        size = rng.choice((1, 2, 4, 8))
        offset = rng.choice(PLACES) + rng.randrange(rng.choice((64, 256)))
        value = rng.choice((rng.choice(disk_images.INTERESTING), rng.randrange(4096), rng.getrandbits(64)))
        data[offset : offset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    if rng.random() < 0.1:
        del data[rng.randrange(len(data) + 1) :]


if __name__ == "__main__":
    small = {"block_size": "1M"}
    corpus = [image(small), image(small, crashed=True), image(small, parent=True)]
    corpus.append(image({**small, "logical_sector_size": "4096"}, crashed=True))
    layout.checksum_is_good = lambda raw: True
    log.LogReader._is_good = lambda self, entry: True
    disk_images.mutate = mutate
    sys.exit(run(FORMAT, corpus, "tests/fuzz/fuzz_vhdx.py"))
