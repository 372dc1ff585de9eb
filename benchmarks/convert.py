"""How long a conversion takes, beside ``qemu-img convert``: every pair of formats, a half-full image.

The source holds runs of random bytes and holes of the same length in turn, so that half of it is stored.
Each round runs both programs once for each pair, with nothing left to be written out when one begins, and
after memory for the page cache was touched: a virtual host may have given its free memory back, and whoever
needs it first pays for it. Who begins changes with each round, for the same reason. Neither program waits
until the target is on stable storage (``--no-sync``; QEMU never does). The target must then hold what the
source holds, and a sparse source must not give a full target. sublet's modules are compiled before, as pip
compiles them.

The table shows medians in seconds; ``ratio`` above 1 means that sublet is slower. ``best`` is the same of the
quickest rounds, ``cpu`` of processor seconds: a busy host disturbs both less.

    python benchmarks/convert.py --size 4G --rounds 3 --json result.json
    python benchmarks/convert.py --pairs raw:qcow2,vhdx:vmdk
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from installed import compile_modules

from sublet.units import MIB, parse_size

FORMATS: Final = ("raw", "qcow2", "vdi", "vmdk", "vhd", "vhdx")
QEMU_NAMES: Final = {"vhd": "vpc"}
PROMISE: Final = 1.25
RUN_BYTES: Final = 4 * MIB
"""Length of a run of data, and of the hole behind it."""
SLACK: Final = 1.1
"""How much more storage than qemu-img's a target may take: larger metadata, but no filled holes."""
MADV_POPULATE_WRITE: Final = 23
TIME_LIMIT_S: Final = 600


def make_source(path: Path, size: int) -> None:
    """Write a raw file of which every other run is random."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size, 2 * RUN_BYTES):
            os.pwrite(file.fileno(), os.urandom(min(RUN_BYTES, size - offset)), offset)


def qemu_name(name: str) -> str:
    """What qemu-img calls a format."""
    return QEMU_NAMES.get(name, name)


def commands(source: Path, target: Path) -> dict[str, list[str]]:
    """What converts one into the other, by program."""
    one, other = source.suffix[1:], target.suffix[1:]
    files = [str(source), str(target)]
    sublet = [sys.executable, "-m", "sublet", "disk", "convert", "-f", one, "-O", other, "--no-sync"]
    qemu = ["qemu-img", "convert", "-f", qemu_name(one), "-O", qemu_name(other)]
    return {"sublet": [*sublet, *files], "qemu-img": [*qemu, *files]}


def touch_memory(size: int) -> None:
    """Have the host give this machine memory for so many bytes of page cache."""
    if size:
        with mmap.mmap(-1, size) as area:
            area.madvise(MADV_POPULATE_WRITE)


def time_one(command: Sequence[str], target: Path, size: int) -> tuple[float, float]:
    """Seconds, and processor seconds, of one conversion into a file that is not there yet."""
    target.unlink(missing_ok=True)
    os.sync()
    touch_memory(size)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, timeout=TIME_LIMIT_S)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def require_same(source: Path, target: Path) -> None:
    """qemu-img finds the same content in both.

    Raises:
        subprocess.CalledProcessError: It does not.
    """
    names = ["-f", qemu_name(source.suffix[1:]), "-F", qemu_name(target.suffix[1:])]
    subprocess.run(["qemu-img", "compare", "-q", *names, str(source), str(target)], check=True)


def measure(source: Path, target: Path, rounds: int, size: int) -> dict[str, float]:
    """Medians of one pair, and the storage that the targets take.

    Raises:
        subprocess.CalledProcessError: A conversion failed, or is wrong.
    """
    seconds: dict[str, list[float]] = {"sublet": [], "qemu-img": []}
    cpu: dict[str, list[float]] = {"sublet": [], "qemu-img": []}
    stored: dict[str, int] = {}
    for number in range(rounds):
        programs = list(commands(source, target).items())
        for program, command in programs if number % 2 else reversed(programs):
            wall, busy = time_one(command, target, size // 2)
            seconds[program].append(wall)
            cpu[program].append(busy)
            stored[program] = target.stat().st_blocks * 512
            if program == "sublet" and number == 0:
                require_same(source, target)
    target.unlink()
    row = {program: statistics.median(values) for program, values in seconds.items()}
    row["ratio"] = row["sublet"] / row["qemu-img"]
    row["best ratio"] = min(seconds["sublet"]) / min(seconds["qemu-img"])
    row["cpu ratio"] = statistics.median(cpu["sublet"]) / statistics.median(cpu["qemu-img"])
    row["storage ratio"] = stored["sublet"] / stored["qemu-img"]
    return row


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", default="256M", help="size of the disk")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--pairs", help="as in raw:qcow2,vhdx:vmdk; by default all")
    parser.add_argument("--folder", type=Path, help="where the images are made")
    parser.add_argument("--json", type=Path, help="write the result there, too")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; 0 unless a conversion was wrong."""
    arguments = parse_arguments(words)
    if shutil.which("qemu-img") is None:
        print("there is no qemu-img to compare with: nothing measured")
        return 0
    pairs = [(a, b) for a in FORMATS for b in FORMATS if a != b]
    if arguments.pairs:
        pairs = [tuple(pair.split(":")) for pair in arguments.pairs.split(",")]
    folder = Path(tempfile.mkdtemp(prefix="convert-", dir=arguments.folder))
    try:
        compile_modules()
        rows = measure_all(folder, pairs, parse_size(arguments.size), arguments.rounds)
    finally:
        shutil.rmtree(folder)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))
    over = [name for name, row in rows.items() if row["ratio"] > PROMISE]
    print(f"{len(rows) - len(over)} of {len(rows)} pairs within {PROMISE} of qemu-img")
    full = [name for name, row in rows.items() if row["storage ratio"] > SLACK]
    print(f"not sparse: {', '.join(full) or 'none'}")
    return 1 if full else 0


def measure_all(
    folder: Path, pairs: Sequence[tuple[str, str]], size: int, rounds: int
) -> dict[str, dict[str, float]]:
    """A row a pair, printed as they come."""
    plain = folder / "source.raw"
    make_source(plain, size)
    for name in {source for source, _ in pairs} - {"raw"}:
        target = folder / f"source.{name}"
        command = ["qemu-img", "convert", "-f", "raw", "-O", qemu_name(name), str(plain), str(target)]
        subprocess.run(command, check=True)
    rows = {}
    print(f"{'pair':<14}{'sublet s':>10}{'qemu s':>10}{'ratio':>8}{'best':>8}{'cpu':>8}{'storage':>9}")
    for source, target in pairs:
        row = measure(folder / f"source.{source}", folder / f"target.{target}", rounds, size)
        rows[f"{source}:{target}"] = row
        widths = {"sublet": 10, "qemu-img": 10, "ratio": 8, "best ratio": 8, "cpu ratio": 8}
        widths["storage ratio"] = 9
        values = "".join(f"{row[key]:>{width}.2f}" for key, width in widths.items())
        print(f"{source + ':' + target:<14}{values}", flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
