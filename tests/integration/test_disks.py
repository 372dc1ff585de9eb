"""Disks of a running machine: what a guest was told is stable is there after the machine is killed."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from tests.integration.conftest import StartGuest

from sublet.block import create_image, open_image
from sublet.guest import PreparedGuest

pytestmark = pytest.mark.guest

PROMPT = r"[#$] (\x1b\[6n)?\Z"
KIB, MIB = 1 << 10, 1 << 20
RECORD = 4 * KIB
"""Bytes of a record: its number in 16 digits, and a filling that follows from it."""
WRITER = (
    "n=1; while :; do printf '%016d' $n > /tmp/record; "
    "head -c 4080 /tmp/filling >> /tmp/record; "
    "dd if=/tmp/record of=/dev/vda bs=4096 seek=$((n * 37 % 4096)) conv=notrunc,fsync 2>/dev/null "
    "&& echo written-$n; n=$((n + 1)); done"
)


def test_killed_under_write_load(
    start_guest: StartGuest, default_guest: PreparedGuest, tmp_path: Path
) -> None:
    """Every record that the guest saw flushed is in the image, which checks clean but for leaks."""
    path = tmp_path / "disk.qcow2"
    create_image(path, 16 * MIB, format="qcow2", options={"cluster_size": "4K"})
    running = start_guest("default", "--disk", str(path))
    running.expect(PROMPT)
    running.run("yes filling | head -c 8192 > /tmp/filling")
    running.type(WRITER + "\n")
    running.expect(r"written-40\b")
    running.signal(signal.SIGKILL)
    running.wait()
    last = max(int(word[8:]) for word in running.output.decode().split() if word.startswith("written-4"))
    filling = (b"filling\n" * 512)[:4080]
    with open_image(path) as image:
        assert image.check().errors == 0
        for number in range(1, last + 1):
            record = image.read(number * 37 % 4096 * RECORD, RECORD)
            assert record == f"{number:016d}".encode() + filling, f"record {number} of {last}"
    if shutil.which("qemu-img"):
        judge = subprocess.run(["qemu-img", "check", str(path)], capture_output=True, text=True)
        assert judge.returncode in (0, 3), judge.stdout + judge.stderr


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
