"""Mutated VMDK disks of every kind (see ``disk_images``)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from disk_images import Content, run

from sublet.block.chain import Chain
from sublet.block.description import BackingReference
from sublet.block.vmdk import FORMAT
from sublet.block.vmdk.build import KINDS
from sublet.testing.hostfile import MemoryFiles

FOLDER = Path("/disks")
SIZE = 5 * 65536


def disk(kind: str, *, parent: bool = False, zeroed: str = "off") -> tuple[Path, Content]:
    """A small disk with some data, and its parent."""
    files = MemoryFiles()
    backing = None
    if parent:
        FORMAT.create(FOLDER / "base.vmdk", SIZE, options={}, backing=None, files=files)
        backing = BackingReference("base.vmdk", "vmdk")
    path = FOLDER / "disk.vmdk"
    options = {"subformat": kind, "zeroed_grain": zeroed}
    FORMAT.create(path, SIZE, options=options, backing=backing, files=files)
    with FORMAT.open(path, readonly=False, chain=Chain.start(path, files=files)) as image:
        image.write(0, b"a" * 70000)
        image.write(200000, b"z" * 5000)
    return path, {name: bytes(data) for name, data in files.content.items()}


if __name__ == "__main__":
    corpus = [disk(kind) for kind in KINDS]
    corpus += [disk("monolithicSparse", parent=True, zeroed=zeroed) for zeroed in ("on", "off")]
    sys.exit(run(FORMAT, corpus, "tests/fuzz/fuzz_vmdk.py"))
