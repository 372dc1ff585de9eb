"""Guest time against the host's."""

from __future__ import annotations

import time

import pytest
from tests.guests.conftest import StartGuest
from tests.integration.guest import Guest
from tests.integration.test_boot import PROMPT

from sublet.guest import PreparedGuest

pytestmark = pytest.mark.guest

INTERVAL_S = 10.0
ALLOWED_DRIFT = 0.005
RESOLUTION_S = 0.01
"""Of /proc/uptime."""


def sample(guest: Guest) -> tuple[float, float, float]:
    """(host before, guest's uptime, host after), in seconds: the guest read its clock between the two."""
    before = time.monotonic()
    uptime = float(guest.run("cat /proc/uptime").split()[0])
    return before, uptime, time.monotonic()


@pytest.mark.parametrize("load", ["", "while :; do :; done &"], ids=["idle", "busy"])
def test_time_does_not_drift(start_guest: StartGuest, default_guest: PreparedGuest, load: str) -> None:
    """However slow the host is, the guest's seconds lie between two of the host's intervals."""
    guest = start_guest("--no-reboot", "--engine", "translate")
    guest.expect(PROMPT)
    guest.run("sleep 3")
    guest.run(f"{load} true")
    first = sample(guest)
    time.sleep(INTERVAL_S)
    second = sample(guest)
    shortest, longest = second[0] - first[2], second[2] - first[0]
    elapsed = second[1] - first[1]
    assert shortest * (1 - ALLOWED_DRIFT) - RESOLUTION_S <= elapsed
    assert elapsed <= longest * (1 + ALLOWED_DRIFT) + RESOLUTION_S
    source = guest.run("cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
    assert source.strip() == "tsc"
    log = guest.run("dmesg").lower()
    assert "unstable" not in log
    assert "skew" not in log


def test_the_wall_clock_is_the_host_s(start_guest: StartGuest, default_guest: PreparedGuest) -> None:
    """The RTC has whole seconds, so the guest starts up to one behind."""
    guest = start_guest("--no-reboot", "--engine", "translate")
    guest.expect(PROMPT)
    before = time.time()
    seconds = int(guest.run("date +%s"))
    assert before - 3 <= seconds <= time.time() + 1
