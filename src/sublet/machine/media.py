"""CDs and floppy disks of a running machine: what lies in its drives, and changing it (``sublet media``)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublet.block import BlockDevice
from sublet.control import Call, Operations
from sublet.errors import UsageError, WrongMoment


@dataclass
class MediaDrive:
    """One drive for media that can be taken out."""

    name: str
    """cdrom0, cdrom1, ..., floppy0, floppy1."""
    path: Path | None
    """What lies in it."""
    open: Callable[[Path], BlockDevice]
    """Opens an image, checked to be of the drive's kind."""
    insert: Callable[[BlockDevice], None]
    """Puts a medium in; the old one is closed."""
    eject: Callable[[bool], bool]
    """Takes the medium out and closes it, with True against the guest's will; False: the drive is locked."""


class Media:
    """The drives of one machine. Any thread; one change at a time."""

    def __init__(self) -> None:
        self._drives: dict[str, MediaDrive] = {}
        self._lock = threading.Lock()

    def add(self, drive: MediaDrive) -> None:
        """List a drive; while the machine is built."""
        self._drives[drive.name] = drive

    def paths(self, kind: str) -> tuple[Path | None, ...]:
        """What lies in the drives of a kind (``cdrom``, ``floppy``), by number."""
        return tuple(drive.path for name, drive in sorted(self._drives.items()) if name.startswith(kind))

    def add_operations(self, operations: Operations) -> None:
        """Let other commands look and change: ``media.list``, ``media.insert``, ``media.eject``."""
        operations.add("media.list", self._list)
        operations.add("media.insert", self._insert)
        operations.add("media.eject", self._eject)

    def _list(self, parameters: dict[str, Any], call: Call) -> list[dict[str, Any]]:
        drives = [self._drives[name] for name in sorted(self._drives)]
        return [{"drive": drive.name, "file": _text(drive.path)} for drive in drives]

    def _insert(self, parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        """The medium in ``file`` takes the place of what is there."""
        file = parameters.get("file")
        if not isinstance(file, str):
            raise UsageError("media.insert needs a file")
        with self._lock:
            drive = self._find(parameters)
            image = drive.open(Path(file))
            try:
                self._take_out(drive, parameters)
            except BaseException:
                image.close()
                raise
            drive.insert(image)
            drive.path = Path(file)
        return {"drive": drive.name, "file": file}

    def _eject(self, parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        with self._lock:
            drive = self._find(parameters)
            self._take_out(drive, parameters)
        return {"drive": drive.name, "file": None}

    def _take_out(self, drive: MediaDrive, parameters: dict[str, Any]) -> None:
        """Raises: WrongMoment: The guest has locked the drive; it is told that somebody wants the medium."""
        if not drive.eject(parameters.get("force") is True):
            raise WrongMoment(
                f"the guest has locked {drive.name}",
                remedy="Unmount it there and try again, or give --force.",
            )
        drive.path = None

    def _find(self, parameters: dict[str, Any]) -> MediaDrive:
        drive = self._drives.get(str(parameters.get("drive")))
        if drive is None:
            names = ", ".join(sorted(self._drives)) or "none"
            raise UsageError(
                f"this machine has no drive {parameters.get('drive')!r} for removable media; it has: {names}",
                remedy="A machine started with --cdrom none or --floppy none has an empty drive.",
            )
        return drive


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
