"""What disk images cost on the host, without a guest: the promises that need no other program beside them.

* random reads and writes of 4 KiB, a QCOW2 image that is allocated in full against a raw file: at least 85 %;
* probing and opening a QCOW2 image of 2 TiB: under 50 ms, and 32 MiB of memory;
* `create -b`, a snapshot and reverting to it: times for disks of 1 GiB to 4 TiB that hold the same data.

    python benchmarks/disk_host.py --rounds 5 --json result.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sublet.block import Image, create_image, open_image
from sublet.units import GIB, MIB, TIB

BLOCK: Final = 4096
DISK: Final = 256 * MIB
REQUESTS: Final = 40_000
SLICES: Final = 20
"""Both images take their turns this often in a round, so that a busy host slows both alike."""
SIZES: Final = (GIB, 64 * GIB, 4 * TIB)
OPENER: Final = """
import resource, sys, time
from pathlib import Path
from sublet.block import open_image
from sublet.block.hostfile import Lock, OsFiles
from sublet.block.registry import probe
import sublet.block.qcow2
before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
start = time.perf_counter()
file = OsFiles().open(Path(sys.argv[1]), readonly=True, lock=Lock.NONE)
assert probe(file) == "qcow2"
file.close()
with open_image(Path(sys.argv[1])) as image:
    image.read(image.size - 4096, 4096)
    taken = time.perf_counter() - start
print(taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def fill(path: Path) -> None:
    """Allocate a disk in full."""
    create_image(path, DISK, format=path.suffix[1:])
    with open_image(path) as image:
        for offset in range(0, DISK, MIB):
            image.write(offset, b"f" * MIB)


def time_requests(image: Image, places: Sequence[int], *, write: bool) -> float:
    """Requests a second of processor time: the page cache answers, and other programs do not count."""
    data = b"w" * BLOCK
    start = time.thread_time()
    if write:
        for place in places:
            image.write(place, data)
    else:
        for place in places:
            image.read(place, BLOCK)
    return len(places) / (time.thread_time() - start)


def random_access(folder: Path, rounds: int) -> dict[str, float]:
    """QCOW2 in parts of raw, reads and writes: medians of interleaved rounds."""
    paths = [folder / "disk.raw", folder / "disk.qcow2"]
    for path in paths:
        fill(path)
    chance = random.Random(1)
    shares: dict[str, list[float]] = {"read": [], "write": []}
    with open_image(paths[0]) as raw, open_image(paths[1]) as qcow2:
        for _ in range(rounds * SLICES):
            places = [chance.randrange(DISK // BLOCK) * BLOCK for _ in range(REQUESTS // SLICES)]
            for name, values in shares.items():
                rates = [time_requests(image, places, write=name == "write") for image in (raw, qcow2)]
                values.append(rates[1] / rates[0])
    for path in paths:
        path.unlink()
    return {f"random 4 KiB {name}, qcow2/raw": statistics.median(values) for name, values in shares.items()}


def opening(folder: Path, rounds: int) -> dict[str, float]:
    """Milliseconds and MiB of opening 2 TiB."""
    path = folder / "large.qcow2"
    create_image(path, 2 * TIB, format="qcow2")
    with open_image(path) as image:
        for number in range(64):
            image.write(number * (image.size // 64), b"x" * BLOCK)
    figures = []
    for _ in range(rounds):
        command = [sys.executable, "-c", OPENER, str(path)]
        words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        figures.append((float(words[0]) * 1000, float(words[1]) / 1024))
    path.unlink()
    times, memories = zip(*figures, strict=True)
    return {
        "probe, open and read 2 TiB, ms": statistics.median(times),
        "the same, MiB": statistics.median(memories),
    }


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def by_size(folder: Path, rounds: int) -> dict[str, float]:
    """Milliseconds of what must not depend on a disk's size."""
    figures: dict[str, list[float]] = {}
    for size in SIZES * rounds:
        for name, taken in time_metadata(folder / "base.qcow2", folder / "top.qcow2", size).items():
            figures.setdefault(f"{name}, {size // GIB} GiB, ms", []).append(taken)
    return {name: statistics.median(values) for name, values in sorted(figures.items())}


def time_metadata(base: Path, top: Path, size: int) -> dict[str, float]:
    """Milliseconds of each operation, on a new disk of that size that holds 256 MiB."""
    create_image(base, size, format="qcow2")
    with open_image(base) as image:
        for number in range(256):
            image.write(number * MIB, b"d" * MIB)
        image.flush()
        took = {"snapshot": timed(lambda: image.create_snapshot("one"))}
        image.write(0, b"e" * MIB)
        took["revert"] = timed(lambda: image.revert_snapshot("one"))
    took["create -b"] = timed(lambda: create_image(top, None, format="qcow2", backing=base))
    top.unlink()
    base.unlink()
    return took


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="where the images are made; /dev/shm leaves the disk out of it"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(words)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="disk-host-", dir=arguments.folder) as folder:
        for part in (random_access, opening, by_size):
            figures |= part(Path(folder), arguments.rounds)
    for name, value in figures.items():
        print(f"{name:<36}{value:>10.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
