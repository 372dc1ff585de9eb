"""Removable media: what other commands may do with the drives of a running machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sublet.block import BlockDevice
from sublet.control import Operations
from sublet.devices.storage.cd import CdDrive
from sublet.devices.storage.sense import CheckCondition
from sublet.errors import UsageError, WrongMoment
from sublet.machine.media import Media, MediaDrive
from sublet.testing import RamDisk

READY = bytes(12)
PREVENT = bytes((0x1E, 0, 0, 0, 1)).ljust(12, b"\0")
EVENTS = bytes((0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8)).ljust(12, b"\0")
EJECT_REQUEST = 1


class Machine:
    """One CD drive with a disc, asked as the control socket asks."""

    def __init__(self) -> None:
        self.opened: list[RamDisk] = []
        self.cd = CdDrive(self.open(Path("/a.iso")))
        media = Media()
        drive = MediaDrive(
            "cdrom0", Path("/a.iso"), self.open, self.cd.insert, lambda force: self.cd.eject(force=force)
        )
        media.add(drive)
        self.media = media
        self._operations = Operations()
        media.add_operations(self._operations)

    def open(self, path: Path) -> BlockDevice:
        self.opened.append(RamDisk(2048 * 16))
        return self.opened[-1]

    def ask(self, verb: str, **parameters: object) -> Any:
        return self._operations.find(f"media.{verb}")(parameters, NoCall())


class NoCall:
    """A client that waits."""

    def progress(self, done: int, total: int) -> None:
        """Not asked for."""

    def cancelled(self) -> bool:
        return False


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_another_disc(machine: Machine) -> None:
    machine.ask("insert", drive="cdrom0", file="/b.iso")
    assert machine.ask("list") == [{"drive": "cdrom0", "file": "/b.iso"}]
    assert machine.media.paths("cdrom") == (Path("/b.iso"),)
    assert [disk.closed for disk in machine.opened] == [True, False]


def test_an_empty_drive(machine: Machine) -> None:
    machine.ask("eject", drive="cdrom0")
    machine.ask("eject", drive="cdrom0")
    assert not machine.cd.present
    assert machine.ask("list") == [{"drive": "cdrom0", "file": None}]
    assert machine.media.paths("cdrom") == (None,)


def test_a_drive_that_the_guest_has_locked(machine: Machine) -> None:
    """The guest is told that somebody wants the disc (MMC-6 §6.6.3 "EjectRequest"); only force takes it."""
    with pytest.raises(CheckCondition):
        machine.cd.execute(READY)  # the attention of power-on
    machine.cd.execute(PREVENT)
    machine.cd.execute(EVENTS)
    for verb in ("eject", "insert"):
        with pytest.raises(WrongMoment, match="locked"):
            machine.ask(verb, drive="cdrom0", file="/b.iso")
    assert machine.cd.execute(EVENTS).data[4] & 0xF == EJECT_REQUEST
    assert machine.cd.present
    assert [disk.closed for disk in machine.opened] == [False, True]
    machine.ask("eject", drive="cdrom0", force=True)
    assert not machine.cd.present


@pytest.mark.parametrize("drive", ["cdrom1", "floppy0", "", 3, None])
def test_a_drive_that_is_not_there(machine: Machine, drive: object) -> None:
    with pytest.raises(UsageError, match="it has: cdrom0"):
        machine.ask("eject", drive=drive)


def test_insert_needs_a_file(machine: Machine) -> None:
    with pytest.raises(UsageError, match="file"):
        machine.ask("insert", drive="cdrom0")
