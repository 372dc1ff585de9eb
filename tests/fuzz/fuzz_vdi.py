"""Mutated VDI images (see ``disk_images``)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from disk_images import Content, run

from sublet.block.chain import Chain
from sublet.block.description import BackingReference
from sublet.block.vdi import FORMAT
from sublet.testing.hostfile import MemoryFiles

FOLDER = Path("/disks")


def image(static: str, parent: bool) -> tuple[Path, Content]:
    """A small image with some data, and its parent."""
    files = MemoryFiles()
    backing = None
    if parent:
        FORMAT.create(FOLDER / "base.vdi", 40960, options={"block_size": "4096"}, backing=None, files=files)
        backing = BackingReference("base.vdi", "vdi")
    path = FOLDER / "disk.vdi"
    options = {"block_size": "4096", "static": static}
    FORMAT.create(path, 40960, options=options, backing=backing, files=files)
    with FORMAT.open(path, readonly=False, chain=Chain.start(path, files=files)) as disk:
        disk.write(0, b"a" * 5000)
        disk.write(30000, b"z" * 5000)
    return path, {name: bytes(data) for name, data in files.content.items()}


if __name__ == "__main__":
    sys.exit(
        run(FORMAT, [image("off", False), image("on", False), image("off", True)], "tests/fuzz/fuzz_vdi.py")
    )
