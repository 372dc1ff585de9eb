"""Configuring a disk's packages in a machine of our own, where this host does not let us be root."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Final

from sublet.guest.store import Progress, copy_sparse

_CMDLINE: Final = "console=ttyS0 root=/dev/vda rw quiet panic=-1 sublet.configure"
_FINISHED: Final = "sublet: configured"
_TIME_LIMIT_S: Final = 1800
_SUBLET: Final = (sys.executable, "-m", "sublet")


def configure_in_machine(kernel: Path, initrd: Path, disk: Path, progress: Progress) -> bool:
    """Boot a disk to the end of its second stage; whether its packages are configured now.

    The machine works on a copy, which takes the disk's place when all went well. Where no machine can run,
    the disk stays as it was, and the guest configures itself the first time it boots.
    """
    copy = disk.with_name(f"{disk.name}.configuring")
    copy_sparse(disk, copy)
    try:
        finished = _boot(_command(kernel, initrd, copy), progress)
        if finished:
            copy.replace(disk)
        return finished
    finally:
        copy.unlink(missing_ok=True)


def _command(kernel: Path, initrd: Path, disk: Path) -> list[str]:
    boot = ["--kernel", str(kernel), "--initrd", str(initrd), "--append", _CMDLINE, "--disk", str(disk)]
    return [*_SUBLET, "run", "--memory", "1024M", "--no-reboot", *boot]


def _boot(command: list[str], progress: Progress) -> bool:
    """Run a machine to its end, telling of each package; whether it said that it finished."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        timer = threading.Timer(_TIME_LIMIT_S, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            finished = _follow(process.stdout, progress)
            return process.wait() == 0 and finished
        finally:
            timer.cancel()
            process.kill()


def _follow(console: IO[bytes], progress: Progress) -> bool:
    finished = False
    while raw := console.readline(4096):
        line = raw.decode(errors="replace").strip()
        if line.startswith("Setting up "):
            progress(f"configuring {line.split()[2]} in a machine")
        finished |= line == _FINISHED
    return finished
