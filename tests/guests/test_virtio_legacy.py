"""Debian's kernel on virtio's legacy interface alone, as kernels before Linux 4.0 knew it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.guests.conftest import StartGuest
from tests.integration.test_boot import PROMPT

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

BOOT_LIMIT_S = 300.0
SIZE = 4 << 20
VERSION_1 = 32
FEATURES = "for d in /sys/bus/virtio/devices/*; do cat $d/features; done"


def test_linux_without_the_modern_interface(start_guest: StartGuest, tmp_path: Path) -> None:
    """It reads what the disk holds, copies it behind itself, and gets an address by DHCP."""
    content = bytes(range(256)) * (SIZE // 512)
    disk = tmp_path / "disk.raw"
    disk.write_bytes(content + bytes(SIZE // 2))
    words = ["--machine", "pc", "--memory", "256M", "--disk", f"{disk},bus=virtio"]
    guest = start_guest("default-amd64", *words, "--append", "virtio_pci.force_legacy=1")
    guest.expect(PROMPT, BOOT_LIMIT_S)
    guest.type("stty -echo\n")
    guest.expect(PROMPT)
    features = guest.run(FEATURES).split()
    assert len(features) == 4
    assert all(bits[VERSION_1] == "0" for bits in features)
    # The prompt does not wait for the network.
    guest.run("n=0; until ip addr show eth0 | grep -q 10.0.2. || [ $((n += 1)) = 60 ]; do sleep 1; done")
    assert "10.0.2." in guest.run("ip addr show eth0")
    guest.run('test -n "$(head -c 16 /dev/hwrng)"')
    half = SIZE // 2 >> 20
    digest = guest.run(f"dd if=/dev/vda bs=1M count={half} 2>/dev/null | md5sum").split()[0]
    assert digest == hashlib.md5(content).hexdigest()
    guest.run(f"dd if=/dev/vda of=/dev/vda bs=1M count={half} seek={half} conv=fsync 2>/dev/null")
    guest.type("poweroff\n")
    assert guest.wait() == 0, guest.report("another exit code")
    assert disk.read_bytes() == content * 2
