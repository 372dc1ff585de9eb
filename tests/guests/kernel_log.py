"""The kernel's log of a guest, comparable between two boots."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

import pytest
from tests.integration.guest import Guest

from sublet.guest import PreparedGuest

_WARNING: Final = 4
"""Levels up to this one count (syslog(2): 0 emergency … 4 warning … 7 debug)."""
_LINE: Final = re.compile(r"^<(\d+)>(?:\[ *\d+\.\d+\] )?(.*)$", re.MULTILINE)
_TIMING: Final = re.compile(
    r"tsc: (Unable to calibrate against PIT|PIT calibration deviates from PMTIMER)"
    r"|\.\.MP-BIOS bug: 8254 timer not connected to IO-APIC"
    r"|hrtimer: interrupt took \d+ ns"
)
"""Printed, by chance, where the host takes the machine's thread off its processor for milliseconds."""


def warnings(guest: Guest) -> list[str]:
    """Messages at level warning and above of a guest at its shell, in order, as they were printed."""
    lines = [(int(number) & 7, text) for number, text in _LINE.findall(guest.run("dmesg -r"))]
    assert lines, guest.report("dmesg printed nothing")
    return [text for level, text in lines if level <= _WARNING and not _TIMING.search(text)]


def comparable(messages: list[str]) -> set[str]:
    """Messages without what differs from boot to boot: numbers, addresses, process ids."""
    return {re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+", "N", message).strip() for message in messages}


def qemu_command(guest: PreparedGuest) -> list[str]:
    """The same boot under QEMU's TCG: kernel, initrd, command line, memory and disks.

    Skips the test on a host without QEMU.
    """
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("there is no qemu-system-x86_64 to compare with")
    return [
        *(qemu, "-accel", "tcg", "-cpu", "max", "-m", str(guest.memory_mib)),
        *("-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", guest.cmdline),
        *(word for disk in guest.disks for word in ("-drive", _drive(disk))),
    ]


def _drive(disk: Path) -> str:
    return f"file={disk},format=raw,if=virtio,snapshot=on"
