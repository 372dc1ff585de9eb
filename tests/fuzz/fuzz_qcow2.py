"""Damaged QCOW2 images: whatever the bytes, opening, reading, checking and repairing end in order.

Only errors of ``sublet.errors`` may come out, memory stays bounded, and an image that was repaired checks
clean. Runs for SUBLET_FUZZ_SECONDS (20) with the seed in SUBLET_FUZZ_SEED (random); half of it guided by the
code's coverage where atheris is installed (``guided``).
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sys
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import guided

from sublet.block import create_image, open_image
from sublet.block.hostfile import HostFile, Lock
from sublet.errors import SubletError
from sublet.testing.hostfile import MemoryFile, MemoryFiles

MEMORY_LIMIT_KIB = 768 * 1024
"""Resident set that the fuzzer may reach."""
FILE_LIMIT = 64 << 20
"""A damaged image may write far behind its end; the host has no room there."""
KIB, MIB = 1 << 10, 1 << 20
PATH = Path("/disks/fuzz.qcow2")
OPTIONS = [
    {},
    {"compat": "0.10", "cluster_size": "512"},
    {"extended_l2": "on", "cluster_size": "16K", "compression_type": "zstd"},
    {"cluster_size": "1K", "refcount_bits": "4"},
]
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


class SmallFile(MemoryFile):
    """A file on a host with little room."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if offset + len(data) > FILE_LIMIT:
            raise OSError(27, "File too large")
        super().write(offset, data)

    def truncate(self, size: int) -> None:
        if size > FILE_LIMIT:
            raise OSError(27, "File too large")
        super().truncate(size)

    def read(self, offset: int, size: int) -> bytes:
        assert size <= 128 * MIB, f"a read of {size} bytes"
        return super().read(offset, size)


class SmallFiles(MemoryFiles):
    """Opens ``SmallFile``."""

    def open(self, path: Path, *, readonly: bool, lock: Lock | None = None) -> HostFile:
        super().open(path, readonly=readonly)
        return SmallFile(path, self.content[path], readonly=readonly)


def seeds() -> list[bytes]:
    """Images with something of everything."""
    images = []
    for options in OPTIONS:
        files = MemoryFiles()
        create_image(PATH, MIB, format="qcow2", options=options, files=files)
        with open_image(PATH, files=files) as image:
            image.write(0, random.Random(1).randbytes(100 * KIB))
            image.create_snapshot("one")
            image.write(50 * KIB, b"second" * 10_000)
            image.write_compressed(512 * KIB, b"text" * (64 * KIB // 4))
            image.write_zeroes(256 * KIB, 128 * KIB)
        images.append(bytes(files.content[PATH]))
    return images


def damage(rng: random.Random, data: bytearray) -> None:
    """Change a few bytes, most of them in the header and tables."""
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        limit = rng.choice((112, 112, 4096, 256 * KIB, len(data)))
        place = rng.randrange(min(limit, len(data)))
        match rng.randrange(4):
            case 0:
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                data[place] = rng.choice(INTERESTING)
            case 2:
                data[place : place + 8] = rng.randbytes(8)[: len(data) - place]
            case _:
                place &= ~7
                data[place : place + 8] = rng.choice((1 << 63, 65536, 1 << 40, 512)).to_bytes(8, "big")
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]


def exercise(rng: random.Random, data: bytearray) -> None:
    """Use a damaged image in every way."""
    files = SmallFiles({PATH: data})
    if rng.random() < 0.5:
        with open_image(PATH, files=files, check=True) as image:
            image.check(repair=True)
            # What a damaged snapshot held is lost; the disk itself must be whole again.
            left = [text for text in image.check().findings if "snapshot" not in text]
            assert not left, left
    with open_image(PATH, files=files, readonly=rng.random() < 0.3) as image:
        size = min(image.size, 4 * MIB)
        image.read(0, size)
        image.map(0, image.size)
        image.check()
        if not image.readonly and size:
            for _ in range(4):
                offset = rng.randrange(size)
                image.write(offset, b"w" * min(100_000, image.size - offset))
                image.discard(0, rng.randrange(size))
                image.write_zeroes(rng.randrange(size), 0)
            image.create_snapshot("new")
            image.flush()
            image.revert_snapshot("one")


def main() -> int:
    """Fuzz until the time is over; 1 on a finding."""
    seconds = float(os.environ.get("SUBLET_FUZZ_SECONDS") or 20)
    seed = int(os.environ.get("SUBLET_FUZZ_SEED") or random.randrange(1 << 32))
    rng = random.Random(seed)
    images = seeds()
    seconds /= 1 + guided.available()
    end, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = bytearray(rng.choice(images))
        damage(rng, data)
        before = bytes(data)
        try:
            exercise(rng, data)
        except (SubletError, OSError):
            pass
        except BaseException:
            path = Path("fuzz-finding.qcow2")
            path.write_bytes(before)
            print(f"finding in round {rounds} of SUBLET_FUZZ_SEED={seed}, kept in {path}", file=sys.stderr)
            raise
        rounds += 1
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert used < MEMORY_LIMIT_KIB, f"{used} KiB in round {rounds} of SUBLET_FUZZ_SEED={seed}"
    print(f"{rounds} damaged images, SUBLET_FUZZ_SEED={seed}")
    if guided.available():
        guided.run([(PATH, {PATH: image}) for image in images], use_changed, seconds, seed)
    return 0


def use_changed(path: Path, content: guided.Content) -> None:
    """One image of the guided kind."""
    with contextlib.suppress(SubletError, OSError):
        exercise(random.Random(zlib.crc32(content[path][:4096])), bytearray(content[path]))


if __name__ == "__main__":
    sys.exit(main())
