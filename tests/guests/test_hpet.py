"""Debian's kernel on the event timers of a PC: it finds them, ticks by them and tells the time by them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.guests.bootable_cd import make_cd
from tests.guests.conftest import StartGuest
from tests.integration.guest import Guest
from tests.integration.test_boot import PROMPT

from sublet.guest import prepare_guest, silent

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

BOOT_LIMIT_S = 300.0
INTERVAL_S = 5.0
ALLOWED_DRIFT = 0.005
RESOLUTION_S = 0.01
TICKS_OF_TWO_SECONDS = 200
"""Of 500 that a busy kernel asks for; the 8254, as the BIOS has set it, gives 36."""
CLOCK_SOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"


def sample(guest: Guest) -> tuple[float, float, float]:
    """(host before, guest's uptime, host after), in seconds: the guest read its clock between the two."""
    before = time.monotonic()
    uptime = float(guest.run("cat /proc/uptime").split()[0])
    return before, uptime, time.monotonic()


def interrupts(guest: Guest) -> int:
    """How often interrupt 0, which timer 0 has in legacy replacement mode, has come."""
    return sum(int(word) for word in guest.run("grep ' 0:' /proc/interrupts").split()[1:2])


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_linux_ticks_and_tells_the_time_by_the_hpet(
    start_guest: StartGuest, tmp_path: Path, machine: str
) -> None:
    """Without the local APIC's timer (``nolapic_timer``) every tick is timer 0's."""
    iso = make_cd(prepare_guest("default-amd64", silent), tmp_path, "clocksource=hpet nolapic_timer")
    guest = start_guest("--cdrom", str(iso), "--memory", "256M", "--machine", machine)
    guest.expect(PROMPT, BOOT_LIMIT_S)
    guest.type("stty -echo\n")
    guest.expect(PROMPT)
    assert guest.run(f"cat {CLOCK_SOURCE}").strip() == "hpet"
    assert "hpet0: 3 comparators, 64-bit 100.000000 MHz counter" in guest.run("dmesg | grep hpet0")
    ticks = interrupts(guest)
    guest.run("timeout 2 sh -c 'while :; do :; done' || true")
    assert interrupts(guest) - ticks > TICKS_OF_TWO_SECONDS
    first = sample(guest)
    time.sleep(INTERVAL_S)
    second = sample(guest)
    shortest, longest = second[0] - first[2], second[2] - first[0]
    elapsed = second[1] - first[1]
    assert shortest * (1 - ALLOWED_DRIFT) - RESOLUTION_S <= elapsed
    assert elapsed <= longest * (1 + ALLOWED_DRIFT) + RESOLUTION_S
    guest.type("poweroff\n")
    assert guest.wait() == 0, guest.report("another exit code")
