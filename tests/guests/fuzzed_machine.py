"""One run of a machine with firmware whose guest programs registers at random, and how it has to end."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from pathlib import Path
from typing import Final

from tests.guests.firmware_fuzz import MARK, make_cd, make_esp
from tests.integration.guest import Guest

RESIDENT_LIMIT_KIB: Final = 640 * 1024
"""Beside the guest's RAM: the core, its translations, and what the devices hold."""
LOG_LIMIT: Final = 64 * 1024
"""Bytes on standard error."""
_DEFINED_ENDS: Final = {0, 80, 81, 82, 130}
_START_LIMIT_S: Final = 120.0
_DISK_SIZE: Final = 4 << 20
_OWN_BUS: Final = {"pc": "ide", "q35": "ahci"}


def fuzz_machine(folder: Path, machine: str, firmware: str, *, cpus: int, seconds: float, leave: str) -> int:
    """Let it run, then leave it; returns how often the guest was started.

    Args:
        folder: For its media; it has disks of both kinds, a floppy and a network card.
        firmware: ``bios`` or ``uefi``, which needs mtools.
        cpus: With more than one, a random IPI soon starts another somewhere.
        seconds: After the guest's first start; it may end itself before.
        leave: ``key`` for Ctrl-], ``signal`` for SIGTERM.

    Raises:
        AssertionError: It did not start, hung, grew, flooded its log or ended in an undefined way.
    """
    guest = Guest([*_words(folder, machine, firmware), "--cpus", str(cpus)], terminal=True)
    try:
        guest.expect(MARK, _START_LIMIT_S)
        with contextlib.suppress(subprocess.TimeoutExpired):
            guest.process.wait(seconds)
        if guest.process.poll() is None:
            assert _peak_kib(guest) < RESIDENT_LIMIT_KIB, guest.report("it grew")
            _leave(guest, leave)
        assert guest.wait() in _DEFINED_ENDS, guest.report("another exit code")
        assert b"Traceback" not in guest.errors, guest.report("a traceback")
        assert len(guest.errors) < LOG_LIMIT, guest.report("it floods its log")
        return guest.output.count(MARK.encode())
    finally:
        guest.close()


def _words(folder: Path, machine: str, firmware: str) -> list[str]:
    words = ["--engine", "translate", "--machine", machine, "--firmware", firmware]
    if firmware == "uefi":
        words += ["--memory", "256M", "--disk", f"{make_esp(folder)},format=raw,readonly=on,bus=virtio"]
    else:
        words += ["--memory", "64M", "--cdrom", str(make_cd(folder)), "--boot", "cdrom"]
    for bus in ("virtio", _OWN_BUS[machine]):
        disk = folder / f"{bus}.raw"
        disk.write_bytes(bytes(_DISK_SIZE))
        words += ["--disk", f"{disk},format=raw,bus={bus}"]
    floppy = folder / "floppy.img"
    floppy.write_bytes(bytes(1440 << 10))
    return [*words, "--floppy", str(floppy), "--net", "nat,model=e1000"]


def _leave(guest: Guest, way: str) -> None:
    if way == "key":
        guest.type("\x1d")
    else:
        guest.signal(signal.SIGTERM)


def _peak_kib(guest: Guest) -> int:
    status = Path(f"/proc/{guest.process.pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(match.group(1)) if match is not None else 0
