"""A kernel on several vCPUs: all are brought up, work at the same time, and come back after a reset."""

from __future__ import annotations

import pytest
from tests.guests.conftest import StartGuest
from tests.integration.test_boot import PROMPT

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

COMPLAINTS = "BUG|WARNING|stall|lockup|unsynchronized|not responding"
WORK = "for job in 1 2 3 4 5 6; do dd if=/dev/zero bs=64k count=200 2>/dev/null | gzip | md5sum & done; wait"


def test_four_vcpus_work_at_once(start_guest: StartGuest) -> None:
    guest = start_guest("--engine", "translate", "--cpus", "4", "--no-reboot")
    guest.expect(PROMPT)
    assert guest.run("nproc").strip() == "4"
    sums = [line.split()[0] for line in guest.run(WORK).splitlines() if line.endswith("-")]
    assert len(sums) == 6
    assert len(set(sums)) == 1, "the jobs disagree"
    assert guest.run(f"dmesg | grep -E '{COMPLAINTS}' || true").strip() == ""
    interrupts = guest.run("grep LOC: /proc/interrupts").split()[1:5]
    assert all(int(count) > 0 for count in interrupts), "a vCPU has no timer"
    guest.type("poweroff\n")
    assert guest.wait() == 0, guest.report("another exit code")


def test_two_vcpus_come_back_after_a_reset(start_guest: StartGuest) -> None:
    guest = start_guest("--engine", "translate", "--cpus", "2")
    for _ in range(2):
        guest.expect(r", 2 CPU, ")
        guest.expect(PROMPT)
        guest.type("reboot\n")
    guest.expect(r", 2 CPU, ")
    guest.expect(PROMPT)
    guest.type("poweroff\n")
    assert guest.wait() == 0, guest.report("another exit code")


@pytest.mark.parametrize("machine", ["microvm", "q35"])
def test_two_vcpus_without_acpi(start_guest: StartGuest, machine: str) -> None:
    """By the MP table, PCI pins included: ``pci=nomsi`` leaves no other way for virtio's interrupts."""
    words = ["--machine", machine, "--cpus", "2", "--memory", "256M", "--append", "acpi=off pci=nomsi"]
    guest = start_guest("default-amd64", *words, "--no-reboot", terminal=True)
    guest.expect(PROMPT)
    guest.type("stty -echo\n")
    guest.expect(PROMPT)
    assert guest.run("nproc").strip() == "2"
    assert "SUBLET" in guest.run("dmesg | grep MPTABLE:")
    assert "IO-APIC" in guest.run("grep virtio /proc/interrupts")
    assert guest.run(f"dmesg | grep -E '{COMPLAINTS}' || true").strip() == ""
    guest.type("\x1d")
    assert guest.wait() == 130, guest.report("another exit code")
