"""Mutated VHD images (see ``disk_images``); checksums are taken as good so that fields get their turn."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from disk_images import Content, run

from sublet.block.chain import Chain
from sublet.block.description import BackingReference
from sublet.block.vhd import FORMAT, layout
from sublet.testing.hostfile import MemoryFiles

FOLDER = Path("/disks")


def image(options: Mapping[str, str], *, parent: bool = False) -> tuple[Path, Content]:
    """A small image with some data, and its parent."""
    files = MemoryFiles()
    backing = None
    if parent:
        FORMAT.create(FOLDER / "base.vhd", 1 << 18, options=options, backing=None, files=files)
        backing = BackingReference("base.vhd", "vhd")
    path = FOLDER / "disk.vhd"
    FORMAT.create(path, 1 << 18, options=options, backing=backing, files=files)
    with FORMAT.open(path, readonly=False, chain=Chain.start(path, files=files, parents=False)) as disk:
        disk.write(0, b"a" * 5000)
        disk.write(200_000, b"z" * 5000)
    return path, {name: bytes(data) for name, data in files.content.items()}


if __name__ == "__main__":
    small = {"block_size": "4K"}
    corpus = [image(small), image({"subformat": "fixed"}), image(small, parent=True)]
    layout._verify = lambda raw, offset, what: None
    sys.exit(run(FORMAT, corpus, "tests/fuzz/fuzz_vhd.py"))
