"""Ctrl-C at any point of the command: it ends, without a traceback, and leaves nothing half-made."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from tests.integration.conftest import StartGuest
from tests.unit.guest.conftest import archive  # noqa: F401  (a fixture)
from tests.unit.guest.fake_archive import FakeArchive

from sublet.guest import PreparedGuest

MOMENTS_S = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
INTERRUPTED = {130, -signal.SIGINT}
"""Before the command's first line runs, Python itself ends by the signal."""


@pytest.mark.parametrize("moment_s", MOMENTS_S)
def test_an_interrupt_ends_a_booting_machine(
    start_guest: StartGuest, default_guest: PreparedGuest, moment_s: float
) -> None:
    guest = start_guest("--no-reboot", stdin=False)
    time.sleep(moment_s)
    guest.signal(signal.SIGINT)
    assert guest.wait() in INTERRUPTED, guest.report("another exit code")
    assert b"Traceback" not in guest.errors


@pytest.mark.parametrize("moment_s", MOMENTS_S)
def test_an_interrupt_leaves_no_half_made_guest(
    start_guest: StartGuest,
    archive: FakeArchive,  # noqa: F811
    tmp_path: Path,
    moment_s: float,
) -> None:
    """Made from a miniature archive; interrupted while it is made, or when it is whole."""
    environment = {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "SUBLET_MIRROR": archive.url,
        "SUBLET_KEYRING": str(archive.keyring),
    }
    guest = start_guest("--no-reboot", stdin=False, environment=environment)
    time.sleep(moment_s)
    guest.signal(signal.SIGINT)
    # Its kernel is none: where it was quick enough, that is how it ended.
    assert guest.wait() in INTERRUPTED | {4}, guest.report("another exit code")
    assert b"Traceback" not in guest.errors
    assert not list((tmp_path / "cache/sublet").glob("scratch/*"))
    for made in (tmp_path / "cache/sublet/guests").glob("default-*"):
        assert (made / "manifest.json").exists()
