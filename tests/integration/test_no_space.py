"""A host without space: a clear error before the boot, an I/O error in the guest after it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.conftest import StartGuest
from tests.integration.guest import SUBLET_RUN
from tests.integration.test_boot import PROMPT

from sublet.guest import PreparedGuest, prepare_guest, silent
from sublet.guest.store import cache_directory

pytestmark = pytest.mark.guest

LIMIT_COMMAND = 'ulimit -f 4194304; exec "$@"'
"""In blocks of 512 bytes: files may grow to 2 GiB, and fail then in the same way as on a full disk."""
LIMITED = ("sh", "-c", LIMIT_COMMAND, "sh", *SUBLET_RUN)


def test_a_disk_that_cannot_be_copied_is_an_error(start_guest: StartGuest, tmp_path: Path) -> None:
    """The private copy of debian's disk is made before anything boots, and none of it stays."""
    prepare_guest("debian", silent).close()
    before = set((cache_directory() / "runs").iterdir())
    guest = start_guest("debian", command=LIMITED, stdin=False)
    assert guest.wait() == 3, guest.report("another exit code")
    assert b"no space left" in guest.errors
    assert b"Traceback" not in guest.errors
    assert set((cache_directory() / "runs").iterdir()) <= before


def test_writes_that_fail_on_the_host_fail_in_the_guest(
    start_guest: StartGuest, default_guest: PreparedGuest, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as stream:
        stream.truncate(3 << 30)
    guest = start_guest("default", "--no-reboot", "--disk", str(disk), command=LIMITED)
    guest.expect(PROMPT)
    guest.run("dd if=/dev/zero of=/dev/vda bs=1M count=8 conv=fsync 2>/dev/null")
    printed = guest.run("dd if=/dev/zero of=/dev/vda bs=1M seek=2500 count=8 conv=fsync 2>&1 || true")
    assert "I/O error" in printed
    assert guest.run("echo alive") == "alive\n"
    guest.type("poweroff\n")
    assert guest.wait() == 0, guest.report("another exit code")
