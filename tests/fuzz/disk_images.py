"""Mutated disk images against the parser of their format.

A file may hold anything; opening, reading, checking, repairing and writing it may fail with an error that
says why, but not in another way, nor hang or take memory without bound. Runs for SUBLET_FUZZ_SECONDS (20)
with the seed in SUBLET_FUZZ_SEED (random); prints the seed and how to run it again. Where atheris is
installed, half of the time is for damage that follows the code's coverage (``guided``).
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import resource
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import guided

from sublet.block.chain import Chain
from sublet.block.format import ImageFormat
from sublet.errors import InternalError, SubletError
from sublet.testing.hostfile import MemoryFiles

Content = dict[Path, bytes]
Mutate = Callable[[random.Random, bytearray], None]

MEMORY_LIMIT_KIB = 512 * 1024
"""Resident set that the fuzzer may reach."""
CASE_LIMIT_SECONDS = 20
"""A single image that takes longer hangs, even on a busy host."""
FILE_LIMIT = 64 << 20
"""Bytes of the largest file that an image may grow to."""
INTERESTING = (
    0,
    1,
    2,
    3,
    7,
    8,
    511,
    512,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFE,
    0xFFFF_FFFF,
    2**63,
    2**64 - 1,
)


class FullDisk(OSError):
    """The host's disk has no room."""


class BoundedFiles(MemoryFiles):
    """Files in memory that refuse to grow past ``FILE_LIMIT``."""

    def open(self, path, *, readonly, lock=None):  # type: ignore[no-untyped-def]
        """Open one that is there."""
        file = super().open(path, readonly=readonly, lock=lock)
        write, truncate = file.write, file.truncate

        def bounded_write(offset, data):  # type: ignore[no-untyped-def]
            if offset + len(data) > FILE_LIMIT:
                raise FullDisk
            write(offset, data)

        def bounded_truncate(size):  # type: ignore[no-untyped-def]
            if size > FILE_LIMIT:
                raise FullDisk
            truncate(size)

        def bounded_write_zeroes(offset, size, *, unmap=True):  # type: ignore[no-untyped-def]
            if offset + size > FILE_LIMIT:
                raise FullDisk
            write(offset, bytes(size))

        file.write, file.truncate = bounded_write, bounded_truncate
        file.write_zeroes = bounded_write_zeroes
        return file


def mutate(rng: random.Random, data: bytearray) -> None:
    """Change some bytes, most of them near the start, or cut the data."""
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        size = rng.choice((1, 2, 4, 8))
        reach = rng.choice((128, 600, 4096, len(data)))
        offset = rng.randrange(max(1, min(reach, len(data)) - size))
        value = rng.choice((rng.choice(INTERESTING), rng.randrange(4096), rng.getrandbits(64)))
        data[offset : offset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    if rng.random() < 0.1:
        del data[rng.randrange(len(data) + 1) :]


def exercise(format: ImageFormat, path: Path, content: Content, rng: random.Random) -> None:
    """Open an image each way, and do with it what its users do."""
    for readonly, check in ((True, False), (True, True), (False, True), (False, False)):
        files = BoundedFiles({name: bytearray(data) for name, data in content.items()})
        head = bytes(files.content[path][:4096])
        format.probe(head, bytes(files.content[path][-512:]), len(files.content[path]))
        try:
            image = format.open(path, readonly=readonly, chain=Chain.start(path, files=files), check=check)
        except SubletError as error:
            require_deliberate(error)
            continue
        try:
            use(image, rng, readonly=readonly)
        except (SubletError, FullDisk) as error:
            require_deliberate(error)
        finally:
            with contextlib.suppress(SubletError, FullDisk):
                image.close()


def require_deliberate(error: Exception) -> None:
    """Fail on an error that says that it is our bug."""
    if isinstance(error, InternalError):
        raise AssertionError(error.message) from error


def use(image, rng: random.Random, *, readonly: bool) -> None:  # type: ignore[no-untyped-def]
    """Read, map, check; and if it may be written, write, repair and resize."""
    image.info()
    places = [rng.randrange(max(1, image.size)) // 512 * 512 for _ in range(4)]
    steps: list[Callable[[], object]] = [image.check]
    for place in (0, *places):
        size = min(70_000, max(0, image.size - place))
        steps.append(lambda place=place, size=size: image.read(place, size))
        steps.append(lambda place=place: image.map(place, max(0, image.size - place)))
        if not readonly:
            steps.append(lambda place=place, size=size: image.write(place, b"w" * size))
            steps.append(lambda place=place, size=size: image.write_zeroes(place, size))
    if not readonly:
        new = max(512, min(image.size, 8 << 20) // 512 * 512 + rng.choice((-512, 512, 1 << 20)))
        steps += [image.flush, lambda: image.check(repair=True), lambda: image.resize(new)]
    rng.shuffle(steps)
    for step in steps:
        try:
            step()
        except SubletError as error:
            require_deliberate(error)


def run(format: ImageFormat, corpus: Sequence[tuple[Path, Content]], script: str) -> int:
    """Fuzz until the time is up; an exit code."""
    seconds = float(os.environ.get("SUBLET_FUZZ_SECONDS", "20"))
    seed = int(os.environ.get("SUBLET_FUZZ_SEED", str(random.randrange(1 << 32))))
    print(f"seed {seed}; run again with SUBLET_FUZZ_SEED={seed} python {script}", flush=True)
    signal.signal(signal.SIGALRM, _too_slow)
    seconds /= 1 + guided.available()
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        rng = random.Random(f"{seed} {count}")
        if not _one(format, corpus, rng, count):
            return 1
        count += 1
    print(f"{count} images")
    if guided.available():
        guided.run(corpus, lambda path, content: _guided(format, path, content), seconds, seed)
    return 0


def _guided(format: ImageFormat, path: Path, content: Content) -> None:
    """One image of the guided kind; what it does with it follows from the image."""
    exercise(format, path, content, random.Random(zlib.crc32(content[path][:4096])))


def _one(format: ImageFormat, corpus: Sequence[tuple[Path, Content]], rng: random.Random, count: int) -> bool:
    path, original = rng.choice(corpus)
    content = dict(original)
    victim = rng.choice(sorted(content))
    data = bytearray(content[victim])
    mutate(rng, data)
    content[victim] = bytes(data)
    signal.alarm(CASE_LIMIT_SECONDS)
    try:
        exercise(format, path, content, rng)
    except Exception:
        traceback.print_exc()
        print(f"image {count} failed", file=sys.stderr)
        return False
    finally:
        signal.alarm(0)
    gc.collect()  # Bounded files are cycles, and large.
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if used > MEMORY_LIMIT_KIB:
        print(f"image {count} took memory up to {used} KiB", file=sys.stderr)
        return False
    return True


def _too_slow(signal_number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"an image took more than {CASE_LIMIT_SECONDS} s")
