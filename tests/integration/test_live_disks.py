"""``sublet disk live`` on a running machine, beside a guest that writes all the time."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import StartGuest
from tests.integration.guest import Guest

from sublet.block import create_image, open_image
from sublet.guest import PreparedGuest

pytestmark = pytest.mark.guest

PROMPT = r"[#$] (\x1b\[6n)?\Z"
MIB = 1 << 20
SIZE = 24 * MIB
WRITER = (
    "(n=1; while [ ! -e /tmp/stop ]; do dd if=/dev/urandom of=/dev/vda bs=16k count=3 "
    "seek=$((n * 37 % 1530)) conv=notrunc,fsync 2>/dev/null; n=$((n + 1)); done; touch /tmp/stopped) & true"
)


def live(*words: str) -> Any:
    """Run ``sublet disk live``; returns what it prints as JSON."""
    command = [sys.executable, "-m", "sublet", "disk", "live", *words, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def digest(path: Path) -> str:
    """What an image holds; it checks clean."""
    with open_image(path, readonly=True) as image:
        assert image.check().clean
        return hashlib.sha256(image.read(0, image.size)).hexdigest()


def end_writing(guest: Guest) -> str:
    """Stop the writer; returns the digest of the disk as the guest reads it past its page cache."""
    guest.run("touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done; sync")
    guest.run("echo 3 > /proc/sys/vm/drop_caches")
    return guest.run("sha256sum < /dev/vda").split()[0]


def test_a_disk_moves_through_all_of_it_under_load(
    start_guest: StartGuest, default_guest: PreparedGuest, tmp_path: Path
) -> None:
    create_image(tmp_path / "disk.qcow2", SIZE, format="qcow2")
    name = f"live-{tmp_path.name[-20:]}"
    guest = start_guest("default", "--name", name, "--disk", str(tmp_path / "disk.qcow2"))
    guest.expect(PROMPT)
    guest.run(WRITER)
    disk = f"{name}:vda"
    assert live("list", name)[0]["file"] == str(tmp_path / "disk.qcow2")
    live("backup", disk, str(tmp_path / "mon.qcow2"), "--bitmap", "daily")
    live("snapshot", disk, str(tmp_path / "top.qcow2"))
    below = digest(tmp_path / "disk.qcow2")
    live("mirror", disk, str(tmp_path / "copy.vhdx"))
    assert digest(tmp_path / "disk.qcow2") == below
    live("commit", disk, "--rate", "100M")
    assert live("list", name)[0]["file"] == str(tmp_path / "disk.qcow2")
    live("snapshot", disk, str(tmp_path / "top2.qcow2"))
    live("stream", disk)
    live(
        "backup",
        disk,
        str(tmp_path / "tue.qcow2"),
        "--bitmap",
        "daily",
        "--previous",
        str(tmp_path / "mon.qcow2"),
    )
    live("mirror", disk, str(tmp_path / "new.raw"), "--pivot")
    assert live("list", name)[0]["file"] == str(tmp_path / "new.raw")
    seen = end_writing(guest)
    # A reset builds the machine again, on the disk as it is now.
    guest.type("reboot -f\n")
    guest.expect("Restarting system")
    guest.expect(PROMPT)
    assert guest.run("sha256sum < /dev/vda").split()[0] == seen
    guest.type("poweroff -f\n")
    assert guest.wait() == 0
    assert digest(tmp_path / "new.raw") == seen
    for copy in ("mon.qcow2", "tue.qcow2", "copy.vhdx"):
        digest(tmp_path / copy)
        if shutil.which("qemu-img"):
            subprocess.run(["qemu-img", "check", "-q", str(tmp_path / copy)], check=True)


def test_a_backup_restores_the_moment_when_it_began(
    start_guest: StartGuest, default_guest: PreparedGuest, tmp_path: Path
) -> None:
    """While the guest goes on: a full backup and an increment, each restored and compared."""
    create_image(tmp_path / "disk.qcow2", SIZE, format="qcow2")
    name = f"back-{tmp_path.name[-20:]}"
    guest = start_guest("default", "--no-reboot", "--name", name, "--disk", str(tmp_path / "disk.qcow2"))
    guest.expect(PROMPT)
    guest.run("dd if=/dev/urandom of=/dev/vda bs=1M count=20 conv=fsync 2>/dev/null")
    seen = {}
    for day, more in (("mon", []), ("tue", ["--previous", str(tmp_path / "mon.qcow2")])):
        guest.run("dd if=/dev/urandom of=/dev/vda bs=64k count=9 seek=77 conv=notrunc,fsync 2>/dev/null")
        guest.run("echo 3 > /proc/sys/vm/drop_caches")
        seen[day] = guest.run("sha256sum < /dev/vda").split()[0]
        command = [sys.executable, "-m", "sublet", "disk", "live", "backup", f"{name}:vda"]
        slow = subprocess.Popen(
            [*command, str(tmp_path / f"{day}.qcow2"), "--bitmap", "daily", "--rate", "10M", *more]
        )
        while not any(disk["job"] for disk in live("list", name)) and slow.poll() is None:
            pass
        guest.run("dd if=/dev/urandom of=/dev/vda bs=1M count=20 conv=notrunc,fsync 2>/dev/null")
        assert slow.wait(60) == 0
    guest.type("poweroff -f\n")
    assert guest.wait() == 0
    for day, expected in seen.items():
        assert digest(tmp_path / f"{day}.qcow2") == expected
