"""Kill a machine with SIGKILL under write load, again and again, and look for what was acknowledged.

Each round boots the guest on the disk of the round before, lets it write numbered, checksummed records, each
flushed, kills the machine at a random moment, checks the image (ours and QEMU's), and reads every record back
that the guest saw flushed. The last round's records must still be there after the next one, too.

    python tests/integration/kill_loop.py --rounds 50 --formats qcow2,vhdx --caches writeback,none
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.integration.guest import Guest

from sublet.block import create_image, open_image

PROMPT: Final = r"[#$] (\x1b\[6n)?\Z"
KIB: Final = 1 << 10
SIZE: Final = 16 << 20
RECORD: Final = 4 * KIB
PLACES: Final = SIZE // RECORD
FORMATS: Final = ("raw", "qcow2", "vdi", "vmdk", "vhd", "vhdx")
CACHES: Final = ("writeback", "writethrough", "none")
QEMU_CHECKS: Final = ("qcow2", "vdi", "vmdk", "vhdx")
SMALL_CLUSTERS: Final = {"qcow2": {"cluster_size": "4K"}}
"""So that most records need new clusters."""
WRITER: Final = (
    "n={first}; while :; do printf '%016d' $n > /tmp/record; head -c 4080 /tmp/filling >> /tmp/record; "
    "dd if=/tmp/record of=/dev/vda bs=4096 seek=$((n * 37 % {places})) conv=notrunc,fsync 2>/dev/null "
    "&& echo flushed-$n; n=$((n + 1)); done"
)
FILLING: Final = (b"filling\n" * 512)[:4080]


@dataclass
class Log:
    """What the guest saw flushed."""

    last: int = 0
    """Number of the last record that was."""
    unsure: set[int] = field(default_factory=set)
    """Places where a record may be that was under way when the machine was killed."""

    def require_all(self, path: Path, format: str) -> None:
        """Fail unless every record that was flushed, and not overwritten since, is in the image."""
        newest: dict[int, int] = {n * 37 % PLACES: n for n in range(1, self.last + 1)}
        with open_image(path, format=format) as image:
            report = image.check()
            assert report.errors == 0, report.findings
            for place, number in newest.items():
                found = image.read(place * RECORD, RECORD)
                wanted = f"{number:016d}".encode() + FILLING
                if place not in self.unsure:
                    assert zlib.crc32(found) == zlib.crc32(wanted), f"record {number} of {self.last} is gone"


def judge(path: Path, format: str) -> None:
    """QEMU finds no errors; leaks and a log to replay are no errors."""
    if format not in QEMU_CHECKS or shutil.which("qemu-img") is None:
        return
    repair = ["-r", "all"] if format == "vhdx" else []
    command = ["qemu-img", "check", *repair, "-f", format, str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode in (0, 3), result.stdout + result.stderr


def one_round(path: Path, format: str, cache: str, log: Log, records: int) -> None:
    """Boot, write until about ``records`` more are flushed, kill, and look."""
    disk = f"{path},format={format},cache={cache}"
    guest = Guest(["default", "--no-reboot", "--disk", disk])
    try:
        guest.expect(PROMPT)
        guest.run("yes filling | head -c 8192 > /tmp/filling")
        first = log.last + 1
        guest.type(WRITER.format(first=first, places=PLACES) + "\n")
        guest.expect(rf"flushed-{first + records}\b")
        guest.signal(signal.SIGKILL)
        guest.wait()
    finally:
        guest.close()
    numbers = [int(n) for n in re.findall(rb"^flushed-(\d+)\r?$", guest.output, re.MULTILINE)]
    # The line of the last record may be cut off, and the next record may be under way.
    log.last = max(numbers)
    log.unsure = {(log.last + n) * 37 % PLACES for n in (1, 2)}
    judge(path, format)
    log.require_all(path, format)


def run(folder: Path, format: str, cache: str, rounds: int, rng: random.Random) -> int:
    """All rounds of one format and cache mode; returns how many records were flushed."""
    path = folder / f"disk-{cache}.{format}"
    create_image(path, SIZE, format=format, options=SMALL_CLUSTERS.get(format))
    log = Log()
    for _ in range(rounds):
        one_round(path, format, cache, log, rng.randrange(5, 60))
    return log.last


def main(words: Sequence[str] | None = None) -> int:
    """Run and print; an AssertionError says what was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--caches", default=",".join(CACHES))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(words)
    for format in arguments.formats.split(","):
        for cache in arguments.caches.split(","):
            with tempfile.TemporaryDirectory() as folder:
                rng = random.Random(arguments.seed)
                flushed = run(Path(folder), format, cache, arguments.rounds, rng)
            print(f"{format} {cache}: {arguments.rounds} kills, {flushed} records, none lost", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
