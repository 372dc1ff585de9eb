"""A floppy drive and the disk in it.

Reference: ECMA-125, ECMA-147 and their kin for the formats; IBM PC/AT BIOS for the drive types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sublet.block import BlockDevice
from sublet.devices.storage.medium import SECTOR, Medium
from sublet.devices.storage.taskfile import IDNF, AtaError

RATE_500K, RATE_300K, RATE_250K, RATE_1M = 0, 1, 2, 3
"""Data rates, as the configuration control register has them."""
_LOW: Final = (RATE_250K, RATE_300K)
"""A disk of double density turns faster in a drive for high density."""


@dataclass(frozen=True)
class FloppyFormat:
    """How a disk of one size is laid out."""

    cylinders: int
    heads: int
    sectors: int
    """A track."""
    rates: tuple[int, ...]
    drive_type: int
    """Of the drive that it is for, as CMOS byte 10h has it."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.cylinders * self.heads * self.sectors * SECTOR


FORMATS: Final = (
    FloppyFormat(40, 1, 8, _LOW, 1),
    FloppyFormat(40, 1, 9, _LOW, 1),
    FloppyFormat(40, 2, 8, _LOW, 1),
    FloppyFormat(40, 2, 9, _LOW, 1),
    FloppyFormat(80, 2, 9, _LOW, 3),
    FloppyFormat(80, 2, 15, (RATE_500K,), 2),
    FloppyFormat(80, 2, 18, (RATE_500K,), 4),
    FloppyFormat(80, 2, 21, (RATE_500K,), 4),
    FloppyFormat(82, 2, 21, (RATE_500K,), 4),
    FloppyFormat(80, 2, 36, (RATE_1M,), 5),
)
_USUAL: Final = (FORMATS[6], FORMATS[9])
"""What a disk of an odd size is taken for: the first that holds it."""


def format_of_size(size: int) -> FloppyFormat | None:
    """The format of an image; the rest of a short one is missing. None: it is too large."""
    exact = [layout for layout in FORMATS if layout.size == size]
    return next(iter(exact or [layout for layout in _USUAL if size <= layout.size]), None)


class FloppyDrive:
    """A drive whose kind follows from its first disk; guarded by the controller's lock.

    Args:
        image: The disk, or None; served until ``close``.

    Raises:
        ValueError: The image is larger than any floppy disk (`format_of_size`).
    """

    def __init__(self, image: BlockDevice | None) -> None:
        self._insert(image)
        self.drive_type = _USUAL[0].drive_type if self.layout is None else self.layout.drive_type
        self.cylinder = 0
        self.changed = True

    def _insert(self, image: BlockDevice | None) -> None:
        layout = None if image is None else format_of_size(image.size)
        if image is not None and layout is None:
            raise ValueError(f"no floppy disk has {image.size} bytes")
        self.medium = None if image is None else Medium(image)
        self.layout = layout

    def insert(self, image: BlockDevice | None) -> None:
        """Put another disk in, or take it out; the change line tells the guest. The old one is closed.

        Raises:
            ValueError: The image is larger than any floppy disk.
        """
        old = self.medium
        self._insert(image)
        self.changed = True
        if old is not None:
            old.close()

    @property
    def write_protected(self) -> bool:
        """Whether there is no disk that can be written."""
        return self.medium is None or self.medium.readonly

    def step_to(self, cylinder: int) -> None:
        """Move the heads; a step with a disk in the drive clears the change line."""
        self.cylinder = min(cylinder, 84)
        if self.medium is not None:
            self.changed = False

    def place(self, head: int, sector: int) -> int | None:
        """Byte offset of a sector under the heads; None where there is none."""
        layout = self.layout
        if layout is None or self.cylinder >= layout.cylinders:
            return None
        if head >= layout.heads or not 1 <= sector <= layout.sectors:
            return None
        if self.medium is None:
            return None
        return ((self.cylinder * layout.heads + head) * layout.sectors + sector - 1) * SECTOR

    def read(self, place: int) -> bytes:
        """A sector; what a short image lacks reads as zeroes. Blocks.

        Raises:
            AtaError: The host failed.
        """
        medium = self.medium
        size = 0 if medium is None else max(0, min(SECTOR, medium.size - place))
        data = b"" if medium is None or not size else medium.read(place, size)
        return data.ljust(SECTOR, b"\0")

    def write(self, place: int, data: bytes) -> None:
        """A sector. Blocks.

        Raises:
            AtaError: The host failed, or a short image lacks the sector.
        """
        if self.medium is None or place + SECTOR > self.medium.size:
            raise AtaError(IDNF)
        self.medium.write(place, data)

    def reset(self) -> None:
        """Power-on state."""
        self.cylinder = 0
        self.changed = True

    def save_state(self) -> dict[str, Any]:
        """Heads and change line."""
        return {"cylinder": self.cylinder, "changed": self.changed}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of ``save_state``."""
        self.cylinder, self.changed = state["cylinder"], state["changed"]

    def close(self) -> None:
        """Flush and close the disk's image."""
        if self.medium is not None:
            self.medium.close()
