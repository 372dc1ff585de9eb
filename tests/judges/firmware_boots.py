"""A Debian disk with GRUB, from power-on to its login: every machine, bus and kind of firmware there is.

Run by hand from the top of the repository (20 minutes; it needs seabios, ovmf and what the script needs):

    scripts/make-debian-disk debian.img
    PYTHONPATH=benchmarks python -m tests.judges.firmware_boots debian.img --json result.json
    PYTHONPATH=benchmarks python -m tests.judges.firmware_boots debian.img --only q35

A row passes when Debian asks for a login on its serial port. Each works on a copy of the disk. ``--qemu``
names rows that QEMU's TCG boots too, for the figure beside ours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from firmware_boot import MEMORY_MIB, qemu_command, seconds_to_login

_BUSES: Final = {"pc": ("ide", "virtio"), "q35": ("ahci", "virtio")}
_QEMU_ROWS: Final = ("pc, ide, BIOS", "q35, virtio, UEFI")


@dataclass(frozen=True)
class Row:
    """A machine, what its disk hangs on, and its firmware."""

    machine: str
    bus: str
    firmware: str

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.machine}, {self.bus}, {'BIOS' if self.firmware == 'bios' else 'UEFI'}"

    def command(self, disk: Path) -> list[str]:
        """``sublet run`` with it."""
        base = [sys.executable, "-m", "sublet", "run", "--engine", "translate", "--machine", self.machine]
        words = ["--firmware", self.firmware, "--memory", f"{MEMORY_MIB}M", "--net", "none"]
        return [*base, *words, "--disk", f"{disk},format=raw,bus={self.bus}"]


@dataclass(frozen=True)
class Result:
    """Seconds to the login; None where there was none, or QEMU was not asked."""

    name: str
    ours: float | None
    qemu: float | None


def rows() -> list[Row]:
    """All that exist: `pc` has no AHCI, `q35` no IDE."""
    return [
        Row(machine, bus, firmware)
        for firmware in ("bios", "uefi")
        for machine, buses in _BUSES.items()
        for bus in buses
    ]


def _seconds(command: Sequence[str]) -> float | None:
    try:
        return round(seconds_to_login(list(command)), 1)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return None


def judge(row: Row, disk: Path, scratch: Path, qemu: Sequence[str]) -> Result:
    """Boot it here, and in QEMU if it is to be."""
    copy = scratch / "disk.raw"

    def boot(command: Sequence[str]) -> float | None:
        subprocess.run(["cp", "--sparse=always", disk, copy], check=True)
        return _seconds(command)

    theirs = boot(qemu_command(copy, row.firmware, row.machine, row.bus)) if row.name in qemu else None
    return Result(row.name, boot(row.command(copy)), theirs)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("disk", type=Path, help="what scripts/make-debian-disk made")
    parser.add_argument("--only", default="", help="rows with this in their names")
    parser.add_argument("--qemu", nargs="*", default=_QEMU_ROWS, help="names of rows for QEMU too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print("| machine, bus, firmware | seconds to login | QEMU's TCG |\n|---|---|---|")
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows():
            if options.only in row.name:
                results.append(judge(row, options.disk, Path(scratch), options.qemu))
                shown = ["-" if value is None else value for value in (results[-1].ours, results[-1].qemu)]
                print(f"| {row.name} | {shown[0]} | {shown[1]} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return 1 if any(result.ours is None for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
