"""The exchange of a drive's image, and who waits for whom."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sublet.block import create_image, open_image
from sublet.block.live.drive import Drive
from sublet.errors import WrongMoment

MIB = 1 << 20


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    create_image(tmp_path / "disk.qcow2", 4 * MIB, format="qcow2")
    return Drive(open_image(tmp_path / "disk.qcow2"))


def started(work) -> threading.Thread:  # type: ignore[no-untyped-def]
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_requests_wait_while_somebody_has_the_drive_alone(drive: Drive) -> None:
    with drive.alone():
        reader = started(lambda: drive.read(0, 512))
        writer = started(lambda: drive.write(0, bytes(512)))
        reader.join(0.05)
        assert reader.is_alive()
        assert writer.is_alive()
    reader.join()
    writer.join()
    drive.close()


def test_writes_wait_for_a_held_range_and_others_do_not(drive: Drive) -> None:
    with drive.hold(MIB, MIB):
        drive.write(0, b"x" * MIB)
        drive.write(2 * MIB, b"y" * MIB)
        assert drive.read(MIB, 512) == bytes(512)
        writer = started(lambda: drive.write(2 * MIB - 1, b"zz"))
        writer.join(0.05)
        assert writer.is_alive()
    writer.join()
    assert drive.read(2 * MIB - 1, 2) == b"zz"
    drive.close()


def test_holding_waits_for_the_writes_under_way(drive: Drive) -> None:
    inside, go, held = threading.Event(), threading.Event(), threading.Event()

    class Slow:
        def before_write(self, offset: int, size: int) -> None:
            inside.set()
            go.wait()

        def after_write(self, offset: int, size: int, data: object) -> None:
            pass

    with drive.alone():
        drive.watch(Slow())
    writer = started(lambda: drive.write(0, b"x"))
    inside.wait()

    def hold() -> None:
        with drive.hold(0, 1):
            held.set()

    holder = started(hold)
    assert not held.wait(0.05)
    go.set()
    writer.join()
    holder.join()
    assert held.is_set()
    drive.close()


def test_one_job_at_a_time(drive: Drive) -> None:
    with drive.claim("mirror"):
        with pytest.raises(WrongMoment, match="a mirror is under way"), drive.claim("commit"):
            pass
    with drive.claim("commit"):
        pass
    drive.close()
    with pytest.raises(WrongMoment, match="ending"), drive.claim("commit"):
        pass


def test_closing_waits_for_the_job_to_give_up(drive: Drive) -> None:
    began, left = threading.Event(), threading.Event()

    def job() -> None:
        with drive.claim("mirror"):
            began.set()
            while not drive.closing:
                left.wait(0.001)
            left.set()

    thread = started(job)
    began.wait()
    drive.close()
    assert left.is_set()
    thread.join()
