"""What is said of an image: where it is, what it holds, what a check found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sublet.block.contract import BlockStatus

SECTOR: Final = 512
"""Bytes: what every size and offset of a disk is a multiple of."""
FINDINGS_MAXIMUM: Final = 100
"""Findings of one check that are kept word for word; the rest are only counted."""

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class BackingReference:
    """The parent as the image names it."""

    path: str
    """As stored; relative to the image's folder."""
    format: str | None
    """Name of the parent's format; None where the image does not say."""


@dataclass(frozen=True)
class Snapshot:
    """An internal snapshot."""

    id: str
    name: str
    created: float
    """Seconds since 1970, UTC."""
    size: int
    """Bytes of the disk then."""


@dataclass(frozen=True)
class ImageInfo:
    """What ``sublet disk info`` shows."""

    format: str
    path: Path
    size: int
    """Bytes of the disk."""
    file_size: int
    """Bytes of the file, or of all files of the image."""
    allocated: int
    """Bytes of storage that they take."""
    block_size: int = SECTOR
    cluster_size: int | None = None
    """Bytes of the allocation unit (cluster, grain, block)."""
    backing: BackingReference | None = None
    snapshots: tuple[Snapshot, ...] = ()
    dirty: bool = False
    """It was not closed cleanly; opening it for writing repairs it."""
    encrypted: bool = False
    details: Mapping[str, Json] = field(default_factory=dict)
    """The format's own properties, by name as its specification has it."""


@dataclass(frozen=True)
class MapExtent:
    """A half-open range of one image or chain, and where it is stored."""

    offset: int
    size: int
    status: BlockStatus
    present: bool = True
    """Whether this image stores it; False where the parent answers."""
    depth: int = 0
    """0: this image; 1: its parent; and so on."""
    host_offset: int | None = None
    """Where it is in the host file; None where it is not stored as it is."""
    file: Path | None = None
    compressed: bool = False


@dataclass
class CheckReport:
    """What a check found. Errors lose data if left alone; leaks only waste space."""

    errors: int = 0
    leaks: int = 0
    errors_repaired: int = 0
    leaks_repaired: int = 0
    findings: list[str] = field(default_factory=list)
    """Sentences, at most ``FINDINGS_MAXIMUM``."""

    def error(self, finding: str, *, repaired: bool = False) -> None:
        """Count an error."""
        self.errors += 1
        self.errors_repaired += repaired
        self._note(finding)

    def leak(self, finding: str, *, count: int = 1, repaired: bool = False) -> None:
        """Count a leak of ``count`` units."""
        self.leaks += count
        self.leaks_repaired += count * repaired
        self._note(finding)

    def _note(self, finding: str) -> None:
        if len(self.findings) < FINDINGS_MAXIMUM:
            self.findings.append(finding)

    @property
    def clean(self) -> bool:
        """Neither errors nor leaks are left."""
        return self.errors == self.errors_repaired and self.leaks == self.leaks_repaired
