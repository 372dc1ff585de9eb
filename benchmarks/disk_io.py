"""What a guest's disk does: fio in a booted Debian, under sublet's engines and under QEMU's TCG.

The guest is ``debian`` with fio on its disk, one vCPU, the same kernel, disks and memory on every side. The
second disk is measured, past the guest's page cache: sequential reads and writes of 1 MiB, random reads and
writes of 4 KiB at queue depths 1 and 32, on a raw and on a QCOW2 image, both allocated in full, with the
host's page cache under them (cache=writeback). Every round boots each side once, in turn. The table shows
medians, of requests a second and of requests a second of the machine's processor time, which a busy host
hardly changes; a ratio above 1 means that sublet is faster.

    python benchmarks/disk_io.py --rounds 3 --seconds 5 --json result.json
    python benchmarks/disk_io.py --formats raw --sides translate,qemu --rows randread-32
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from guest_benchmark import newest_qemu

from sublet.block import create_image, open_image
from sublet.guest import PreparedGuest, prepare_guest
from sublet.units import MIB

ROWS: Final = {
    "read-1M": "--rw=read --bs=1M --iodepth=4",
    "write-1M": "--rw=write --bs=1M --iodepth=4",
    "randread-1": "--rw=randread --bs=4k --iodepth=1",
    "randread-32": "--rw=randread --bs=4k --iodepth=32",
    "randwrite-1": "--rw=randwrite --bs=4k --iodepth=1",
    "randwrite-32": "--rw=randwrite --bs=4k --iodepth=32",
}
SIDES: Final = ("translate", "kvm", "qemu")
FORMATS: Final = ("raw", "qcow2")
BOOT_LIMIT_S: Final = 300
DISK_SIZE: Final = 256 * MIB
_READ_KIB, _READ_IOPS, _WRITE_KIB, _WRITE_IOPS = 6, 7, 47, 48
"""Places in fio's terse output, version 3: bandwidth in KiB/s and requests a second."""


class Console:
    """A machine's serial console on a process's standard streams."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self._seen = b""

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Kill the machine when it takes longer, and at the end."""
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._process.kill()
            self._process.wait()

    def expect(self, pattern: str) -> str:
        """Read until ``pattern``; returns what came before it.

        Raises:
            RuntimeError: The machine ended without it.
        """
        assert self._process.stdout is not None
        while (match := re.search(pattern.encode(), self._seen)) is None:
            data = self._process.stdout.read(65536)
            if not data:
                raise RuntimeError(f"the machine ended without {pattern!r}: {self._seen[-300:]!r}")
            self._seen += data
        before, self._seen = self._seen[: match.start()], self._seen[match.end() :]
        return before.decode(errors="replace")

    def type(self, line: str) -> None:
        """Type a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    def processor_time(self) -> float:
        """Seconds that the machine has taken until now."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def run(self, command: str) -> str:
        """Run a shell command; returns what it printed."""
        self.type(f"echo be''gin; {command}; echo e''nd")
        self.expect(r"begin\r?\n")
        return self.expect(r"end\r?\n")


def command_of(side: str, guest: PreparedGuest, disk: Path, qemu: str) -> list[str]:
    """What boots the guest with the disk to measure."""
    boot = ["--kernel", str(guest.kernel), "--initrd", str(guest.initrd), "--append", guest.cmdline]
    format = disk.suffix[1:]
    if side == "qemu":
        words = [
            qemu,
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            str(guest.memory_mib),
            "-nodefaults",
            "-no-reboot",
        ]
        words += [word.replace("--", "-") for word in boot]
        words += ["-drive", f"file={guest.disks[0]},format=raw,if=virtio"]
        words += ["-drive", f"file={disk},format={format},if=virtio,cache=writeback"]
        return [*words, "-display", "none", "-serial", "stdio"]
    words = [sys.executable, "-m", "sublet", "run", "--engine", side, "--no-reboot", *boot]
    disks = ["--disk", f"{guest.disks[0]},format=raw", "--disk", f"{disk},format={format},cache=writeback"]
    return [*words, "--memory", f"{guest.memory_mib}M", *disks]


def measure_side(side: str, disk: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """One boot: MiB/s of the large rows, requests a second of the small ones; and a second of processor time.

    Raises:
        RuntimeError: The machine ended early, or fio failed.
    """
    guest = prepare_guest("debian", packages=("fio",))
    try:
        console = Console(command_of(side, guest, disk, arguments.qemu))
        with console.limited(BOOT_LIMIT_S + len(arguments.rows) * (arguments.seconds * 3 + 60)):
            log_in(console)
            figures: dict[str, float] = {}
            for row in arguments.rows:
                before = console.processor_time()
                figures[row] = run_fio(console, row, arguments.seconds)
                taken = console.processor_time() - before
                figures[f"{row} cpu"] = figures[row] * arguments.seconds / max(taken, 0.01)
            return figures
    finally:
        guest.close()


def log_in(console: Console) -> None:
    """Become root in a plain shell."""
    console.expect("login: ")
    console.type("root")
    console.expect("# ")
    console.type("exec sh")
    console.expect("# ")
    console.type("stty -echo; PS1=")
    console.expect("\n")


def run_fio(console: Console, row: str, seconds: float) -> float:
    """One row's figure.

    Raises:
        RuntimeError: fio failed.
    """
    options = f"--filename=/dev/vdb --direct=1 --ioengine=libaio --time_based --runtime={seconds}"
    said = console.run(f"fio --name={row} {ROWS[row]} {options} --output-format=terse --terse-version=3 2>&1")
    lines = [line.split(";") for line in said.splitlines() if line.startswith("3;")]
    if not lines or lines[0][4] != "0":
        raise RuntimeError(f"fio failed: {said[-300:]}")
    if row.endswith("-1M"):
        return float(lines[0][_WRITE_KIB if "write" in row else _READ_KIB]) / 1024
    return float(lines[0][_WRITE_IOPS if "write" in row else _READ_IOPS])


def make_disk(path: Path) -> None:
    """A disk that is allocated in full."""
    create_image(path, DISK_SIZE, format=path.suffix[1:])
    with open_image(path) as image:
        for offset in range(0, DISK_SIZE, MIB):
            image.write(offset, bytes([offset // MIB % 255 + 1]) * MIB)


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    split = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--formats", type=split, default=list(FORMATS))
    parser.add_argument("--rows", type=split, default=list(ROWS))
    parser.add_argument("--sides", type=split, default=["translate", "qemu"], help=f"of {', '.join(SIDES)}")
    parser.add_argument("--qemu", default=newest_qemu())
    parser.add_argument("--json", type=Path)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when a side failed."""
    arguments = parse_arguments(words)
    if not arguments.qemu and "qemu" in arguments.sides:
        print("QEMU is left out: there is no qemu-system-x86_64")
        arguments.sides.remove("qemu")
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    folder, failed = Path(tempfile.mkdtemp(prefix="disk-io-")), False
    try:
        for format in arguments.formats:
            disk = folder / f"disk.{format}"
            make_disk(disk)
            for side in arguments.sides * arguments.rounds:
                try:
                    result = measure_side(side, disk, arguments)
                except RuntimeError as error:
                    print(f"{format} {side}: {error}", file=sys.stderr)
                    failed = True
                    continue
                for row, value in result.items():
                    figures.setdefault(format, {}).setdefault(row, {}).setdefault(side, []).append(value)
            disk.unlink()
    finally:
        shutil.rmtree(folder)
    print_table(figures, arguments.sides)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    return int(failed)


def print_table(figures: dict[str, dict[str, dict[str, list[float]]]], sides: Sequence[str]) -> None:
    """MiB/s for 1M, requests a second for the rest."""
    ratios = [side for side in sides if side != "qemu"] if "qemu" in sides else []
    heads = "".join(f"{side:>12}" for side in sides) + "".join(f"{side + '/qemu':>18}" for side in ratios)
    print(f"{'row':<22}{heads}")
    for format, rows in figures.items():
        for row, by_side in rows.items():
            middle = {side: statistics.median(values) for side, values in by_side.items()}
            cells = "".join(f"{middle.get(side, float('nan')):>12.0f}" for side in sides)
            for side in ratios:
                known = side in middle and middle.get("qemu")
                cells += f"{middle[side] / middle['qemu']:>18.2f}" if known else f"{'-':>18}"
            print(f"{format + ' ' + row:<22}{cells}")


if __name__ == "__main__":
    sys.exit(main())
