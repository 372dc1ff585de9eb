"""VMDK disks in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from sublet.block.chain import Chain
from sublet.block.description import BackingReference
from sublet.block.format import Image
from sublet.block.vmdk import FORMAT
from sublet.testing.hostfile import MemoryFiles


class Shelf:
    """A folder of disks in memory."""

    def __init__(self) -> None:
        self.files = MemoryFiles()

    def path(self, name: str) -> Path:
        """Path of a file on the shelf."""
        return Path("/disks") / name

    def content(self, name: str) -> bytearray:
        """Bytes of a file."""
        return self.files.content[self.path(name)]

    def create(
        self, size: int, *, name: str = "disk.vmdk", parent: str | None = None, **options: str
    ) -> None:
        """Create a disk."""
        backing = None if parent is None else BackingReference(parent, "vmdk")
        FORMAT.create(self.path(name), size, options=options, backing=backing, files=self.files)

    def open(self, name: str = "disk.vmdk", *, readonly: bool = False, check: bool = False) -> Image:
        """Open a disk."""
        path = self.path(name)
        chain = Chain.start(path, files=self.files)
        return FORMAT.open(path, readonly=readonly, chain=chain, check=check)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()
