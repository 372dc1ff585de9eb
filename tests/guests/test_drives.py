"""Debian's own drivers on the drives of a PC: booted from CD, then read and written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from tests.guests.bootable_cd import make_cd
from tests.guests.conftest import StartGuest
from tests.integration.guest import Guest
from tests.integration.test_boot import PROMPT

from sublet.guest import prepare_guest, silent

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

BOOT_LIMIT_S = 300.0
DISK_SIZE = 8 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(DISK_SIZE))
    return path


def digest(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def boot_cd(start_guest: StartGuest, iso: Path, *arguments: str) -> Guest:
    guest = start_guest("--cdrom", str(iso), "--memory", "256M", "--boot", "cdrom", *arguments)
    guest.expect(PROMPT, BOOT_LIMIT_S)
    guest.type("stty -echo\n")
    guest.expect(PROMPT)
    return guest


def check_disk_and_cd(guest: Guest, disk: Path, iso: Path) -> None:
    """What the guest reads is what the images hold, and what it writes gets there."""
    assert guest.run("md5sum < /dev/sda").split()[0] == digest(disk.read_bytes())
    guest.run("dd if=/dev/sda of=/dev/sda bs=64k skip=4 seek=100 count=8 conv=fsync 2> /dev/null")
    content = disk.read_bytes()
    assert content[100 << 16 : 108 << 16] == content[4 << 16 : 12 << 16]
    assert guest.run("md5sum < /dev/sr0").split()[0] == digest(iso.read_bytes())
    assert guest.run("dmesg | grep -icE 'ata[0-9].*(error|failed|exception|reset)' || true").strip() == "0"


def check_floppies(guest: Guest, floppy: Path, small: Path) -> None:
    guest.run("modprobe floppy")
    assert guest.run("md5sum < /dev/fd0").split()[0] == digest(floppy.read_bytes())
    assert guest.run("md5sum < /dev/fd1").split()[0] == digest(small.read_bytes())
    guest.run("dd if=/dev/zero of=/dev/fd0 bs=512 seek=100 count=3 conv=fsync 2> /dev/null")
    assert floppy.read_bytes()[100 * 512 : 103 * 512] == bytes(3 * 512)


def test_ide_and_floppies_under_a_32_bit_debian(start_guest: StartGuest, tmp_path: Path, disk: Path) -> None:
    iso = make_cd(prepare_guest("default-686", silent), tmp_path)
    floppies = [tmp_path / "a.img", tmp_path / "b.img"]
    for path, size in zip(floppies, (1474560, 368640), strict=True):
        path.write_bytes(os.urandom(size))
    words = [word for path in floppies for word in ("--floppy", str(path))]
    guest = boot_cd(start_guest, iso, "--machine", "pc", "--disk", str(disk), *words)
    check_disk_and_cd(guest, disk, iso)
    check_floppies(guest, *floppies)
    guest.type("poweroff\n")
    assert guest.wait() == 0, guest.report("another exit code")


def test_ahci_under_debian(start_guest: StartGuest, tmp_path: Path, disk: Path) -> None:
    iso = make_cd(prepare_guest("default-amd64", silent), tmp_path)
    guest = boot_cd(start_guest, iso, "--machine", "q35", "--disk", str(disk))
    check_disk_and_cd(guest, disk, iso)
    assert "NCQ (depth 32)" in guest.run("dmesg | grep NCQ")
    guest.type("poweroff\n")
    assert guest.wait() == 0, guest.report("another exit code")
