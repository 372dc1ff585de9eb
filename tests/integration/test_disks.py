"""Disks of a running machine: what a guest was told is stable is there after the machine is killed."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from tests.integration import kill_loop
from tests.integration.conftest import StartGuest

from sublet.block import create_image, open_image
from sublet.guest import PreparedGuest

pytestmark = pytest.mark.guest

PROMPT = r"[#$] (\x1b\[6n)?\Z"
MIB = 1 << 20


@pytest.mark.parametrize(
    ("format", "cache"), [("qcow2", "writeback"), ("vhdx", "none"), ("vmdk", "writethrough")]
)
def test_killed_under_write_load(
    default_guest: PreparedGuest, tmp_path: Path, format: str, cache: str
) -> None:
    """Every record that the guest saw flushed is there, over two kills; more by hand with kill_loop.py."""
    assert kill_loop.run(tmp_path, format, cache, 2, random.Random(1)) > 10


def test_every_format_in_a_guest(
    start_guest: StartGuest, default_guest: PreparedGuest, tmp_path: Path
) -> None:
    """One machine with a disk of each format: what the guest writes is what the image holds."""
    formats = {"raw": "none", "qcow2": "none", "vdi": "writethrough", "vmdk": "writeback", "vhdx": "unsafe"}
    paths = [tmp_path / f"disk.{name}" for name in formats]
    words: list[str] = []
    for path, (name, cache) in zip(paths, formats.items(), strict=True):
        create_image(path, 8 * MIB, format=name)
        words += ["--disk", f"{path},cache={cache},serial=a-{name}"]
    running = start_guest("default", "--no-reboot", *words)
    running.expect(PROMPT)
    sums = []
    for letter, name in zip("abcde", formats, strict=True):
        assert running.run(f"echo $(cat /sys/block/vd{letter}/serial)").strip() == f"a-{name}"
        running.run(f"dd if=/dev/urandom of=/dev/vd{letter} bs=64k count=16 seek=3 conv=fsync 2>/dev/null")
        sums.append(running.run(f"sha256sum < /dev/vd{letter}").split()[0])
    running.type("poweroff -f\n")
    assert running.wait() == 0
    for path, expected in zip(paths, sums, strict=True):
        with open_image(path, readonly=True) as image:
            assert hashlib.sha256(image.read(0, image.size)).hexdigest() == expected
            assert image.check().clean
