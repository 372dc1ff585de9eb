"""Jobs beside a guest that goes on writing: what the guest reads, and what the copies hold."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from tests.unit.block.live.guest import BusyGuest

from sublet.block import create_image, open_image
from sublet.block.live.backup import back_up
from sublet.block.live.drive import Drive
from sublet.block.live.job import Job
from sublet.block.live.merge import commit, stream
from sublet.block.live.mirroring import mirror
from sublet.block.live.overlay import snapshot
from sublet.errors import HostRefused, UsageError, WrongMoment

MIB = 1 << 20
SIZE = 12 * MIB


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path.resolve()


@pytest.fixture
def drive(folder: Path) -> Iterator[Drive]:
    """A QCOW2 disk, a third of it written."""
    create_image(folder / "disk.qcow2", SIZE, format="qcow2")
    image = open_image(folder / "disk.qcow2")
    rng = random.Random(0)
    for _ in range(16):
        image.write(rng.randrange(SIZE // 4096 - 64) * 4096, rng.randbytes(256 * 1024))
    drive = Drive(image)
    yield drive
    drive.close()


def content(path: Path) -> bytes:
    """What an image holds; its own check and QEMU's find nothing."""
    with open_image(path, readonly=True) as image:
        report = image.check()
        assert not report.errors, report.findings
        data = image.read(0, image.size)
    if shutil.which("qemu-img") and path.suffix == ".qcow2":
        # A copy: QEMU does not look at what is in use.
        copy = shutil.copy(path, path.with_suffix(".judged"))
        subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", copy], check=True)
        Path(copy).unlink()
    return data


def require_same(found: bytes, wanted: bytes | bytearray) -> None:
    same = found == wanted
    assert same, "the contents differ"


def test_a_snapshot_freezes_what_is_below(drive: Drive, folder: Path) -> None:
    with BusyGuest(drive) as guest:
        guest.wait_for(100)
        snapshot(drive, folder / "top.qcow2")
        below = content(folder / "disk.qcow2")
        guest.wait_for(100)
        require_same(content(folder / "disk.qcow2"), below)
        snapshot(drive, folder / "top2.qcow2")
        guest.wait_for(100)
    assert drive.image.path == folder / "top2.qcow2"
    drive.close()
    require_same(content(folder / "top2.qcow2"), guest.disk)


def test_a_snapshot_onto_an_existing_file_changes_nothing(drive: Drive, folder: Path) -> None:
    (folder / "top.qcow2").write_bytes(b"mine")
    with pytest.raises(HostRefused):
        snapshot(drive, folder / "top.qcow2")
    assert (folder / "top.qcow2").read_bytes() == b"mine"
    drive.write(0, b"x" * 512)
    assert drive.image.path == folder / "disk.qcow2"


def test_a_failed_switch_leaves_the_disk_as_it_was(
    drive: Drive, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with BusyGuest(drive) as guest:
        guest.wait_for(20)
        monkeypatch.setattr("sublet.block.live.overlay.resume_bitmaps", fail)
        with pytest.raises(OSError, match="Too many"):
            snapshot(drive, folder / "top.qcow2")
        guest.wait_for(20)
    assert not (folder / "top.qcow2").exists()
    drive.close()
    require_same(content(folder / "disk.qcow2"), guest.disk)


@pytest.mark.parametrize("base", ["qcow2", "raw", "vhdx"])
def test_commit_moves_the_guest_to_the_parent(folder: Path, base: str) -> None:
    below = folder / f"base.{base}"
    create_image(below, SIZE, format=base)
    with open_image(below) as image:
        image.write(MIB, random.Random(5).randbytes(5 * MIB))
    create_image(folder / "top.qcow2", None, format="qcow2", backing=below)
    drive = Drive(open_image(folder / "top.qcow2"))
    with BusyGuest(drive) as guest:
        guest.wait_for(100)
        assert commit(Job(drive)) > 0
        assert drive.image.path == below
        require_empty(folder / "top.qcow2")
        guest.wait_for(100)
    drive.close()
    require_same(content(below), guest.disk)
    # The overlay is empty: who starts from it by mistake finds the same disk.
    require_same(content(folder / "top.qcow2"), guest.disk)


def require_empty(path: Path) -> None:
    """The overlay is closed and opens, though its parent is in use."""
    with open_image(path, readonly=True, parents=False) as image:
        assert all(not extent.present for extent in image.extents())


def test_a_cancelled_commit_leaves_the_guest_on_the_overlay(drive: Drive, folder: Path) -> None:
    with BusyGuest(drive) as guest:
        snapshot(drive, folder / "top.qcow2")
        guest.wait_for(200)
        with pytest.raises(WrongMoment, match="cancelled"):
            commit(Job(drive, cancelled=lambda: True))
        guest.wait_for(50)
        assert drive.image.path == folder / "top.qcow2"
        commit(Job(drive))
        guest.wait_for(50)
    drive.close()
    require_same(content(folder / "disk.qcow2"), guest.disk)


def test_stream_makes_the_overlay_independent(drive: Drive, folder: Path) -> None:
    with BusyGuest(drive) as guest:
        snapshot(drive, folder / "top.qcow2")
        guest.wait_for(50)
        stream(Job(drive))
        (folder / "disk.qcow2").unlink()
        guest.wait_for(100)
    drive.close()
    with open_image(folder / "top.qcow2") as image:
        assert image.info().backing is None
    require_same(content(folder / "top.qcow2"), guest.disk)


@pytest.mark.parametrize("format", ["raw", "qcow2", "vdi", "vmdk", "vhd", "vhdx"])
@pytest.mark.parametrize("pivot", [False, True])
def test_mirror(drive: Drive, folder: Path, format: str, pivot: bool) -> None:
    target = folder / f"copy.{format}"
    with BusyGuest(drive) as guest:
        guest.wait_for(20)
        assert mirror(Job(drive), target, format=format, pivot=pivot) > 0
        guest.wait_for(20)
        if pivot:
            assert drive.image.path == target
            guest.wait_for(50)
    drive.close()
    require_same(content(target if pivot else folder / "disk.qcow2")[:SIZE], guest.disk)
    assert [file for file in folder.iterdir() if file.name.startswith(".")] == []


def test_mirror_is_the_disk_at_its_end(drive: Drive, folder: Path) -> None:
    """No write is lost and none comes late: the guest stops when the copy is complete."""
    with BusyGuest(drive) as guest:
        guest.wait_for(20)
        finishing = Job(drive)
        mirror(finishing, folder / "first.raw", format="raw")
    mirror(Job(drive), folder / "second.raw", format="raw")
    require_same(content(folder / "second.raw"), guest.disk)


@pytest.mark.parametrize("verb", ["mirror", "backup"])
def test_what_is_cancelled_leaves_nothing(drive: Drive, folder: Path, verb: str) -> None:
    job = Job(drive, cancelled=lambda: True)
    work = partial(mirror, pivot=True) if verb == "mirror" else back_up
    with BusyGuest(drive) as guest, pytest.raises(WrongMoment, match="cancelled"):
        work(job, folder / "copy.raw", format="raw")
    assert [file.name for file in folder.iterdir()] == ["disk.qcow2"]
    drive.close()
    require_same(content(folder / "disk.qcow2"), guest.disk)


def test_a_copy_that_cannot_be_written_never_fails_the_guest(
    drive: Drive, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sublet.block.raw import RawImage

    def full(self: RawImage, offset: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RawImage, "write", full)
    with BusyGuest(drive) as guest:
        guest.wait_for(20)
        with pytest.raises(OSError, match="No space"):
            mirror(Job(drive), folder / "copy.raw", format="raw")
        guest.wait_for(20)
    assert [file.name for file in folder.iterdir()] == ["disk.qcow2"]


def test_backups_hold_the_moments_when_they_began(drive: Drive, folder: Path) -> None:
    """Full, then increments, then restored: byte by byte what the disk was."""
    moments = []
    previous = None
    for number, name in enumerate(("mon", "tue", "wed")):
        moment = drive.read(0, SIZE)
        path = folder / f"{name}.qcow2"
        with ExitStack() as stack:
            guest = BusyGuest(drive, seed=number)
            begun: list[BusyGuest] = []

            def begin(*_: int, guest: BusyGuest = guest, begun: list[BusyGuest] = begun) -> None:
                """The guest begins to write when the backup has begun."""
                if not begun:
                    begun.append(stack.enter_context(guest))
                    guest.wait_for(20)

            back_up(Job(drive, progress=begin), path, bitmap="daily", previous=previous)
            guest.wait_for(50)
        moments.append((path, moment))
        previous = path
    for path, moment in moments:
        require_same(content(path), moment)
    restored = folder / "restored.raw"
    with open_image(folder / "wed.qcow2", readonly=True) as image:
        from sublet.block.operations import convert

        convert(image, restored, format="raw")
    require_same(restored.read_bytes(), moments[-1][1])


def test_increments_are_small_and_go_on_in_an_overlay(drive: Drive, folder: Path) -> None:
    back_up(Job(drive), folder / "mon.qcow2", bitmap="daily")
    drive.write(MIB, b"a" * 512)
    snapshot(drive, folder / "top.qcow2")
    drive.write(8 * MIB, b"b" * 512)
    copied = back_up(Job(drive), folder / "tue.qcow2", bitmap="daily", previous=folder / "mon.qcow2")
    assert copied == 2 * 65536
    require_same(content(folder / "tue.qcow2"), drive.read(0, SIZE))
    drive.write(2 * MIB, b"c" * 512)
    commit(Job(drive))
    copied = back_up(Job(drive), folder / "wed.qcow2", bitmap="daily", previous=folder / "tue.qcow2")
    assert copied >= 65536
    require_same(content(folder / "wed.qcow2"), drive.read(0, SIZE))


def test_a_cancelled_increment_can_be_made_again(drive: Drive, folder: Path) -> None:
    back_up(Job(drive), folder / "mon.qcow2", bitmap="daily")
    drive.write(MIB, b"a" * 512)
    options = {"bitmap": "daily", "previous": folder / "mon.qcow2"}
    with pytest.raises(WrongMoment, match="cancelled"):
        back_up(Job(drive, cancelled=lambda: True), folder / "tue.qcow2", **options)  # type: ignore[arg-type]
    assert back_up(Job(drive), folder / "tue.qcow2", **options) == 65536  # type: ignore[arg-type]
    require_same(content(folder / "tue.qcow2"), drive.read(0, SIZE))


def test_what_cannot_be_is_refused(folder: Path) -> None:
    create_image(folder / "disk.raw", SIZE, format="raw")
    create_image(folder / "old.raw", SIZE, format="raw")
    drive = Drive(open_image(folder / "disk.raw"))
    with pytest.raises(UsageError, match="no QCOW2 overlay"):
        commit(Job(drive))
    with pytest.raises(UsageError, match="no QCOW2 overlay"):
        stream(Job(drive))
    with pytest.raises(UsageError, match="only qcow2 has bitmaps"):
        back_up(Job(drive), folder / "a.qcow2", bitmap="daily")
    with pytest.raises(UsageError, match="needs the bitmap"):
        back_up(Job(drive), folder / "a.qcow2", previous=folder / "old.raw")
    drive.close()


def test_a_parent_that_others_use_is_not_committed_to(drive: Drive, folder: Path) -> None:
    snapshot(drive, folder / "top.qcow2")
    with open_image(folder / "disk.qcow2", readonly=True):
        with pytest.raises(HostRefused, match="in use"):
            commit(Job(drive))
        drive.write(0, b"still here".ljust(512))
    assert drive.read(0, 10) == b"still here"


def test_a_rate_is_kept(drive: Drive, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sublet.block.live import job as module

    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    copied = mirror(Job(drive, rate=MIB), folder / "copy.raw", format="raw")
    assert now[0] - 100 == pytest.approx(copied / MIB, abs=0.2)
