"""What VDI blocks and VMDK grains have in common: threads, failing hosts and pending pointers."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from sublet.block import Image, create_image, open_image
from sublet.testing.hostfile import FaultyFiles, MemoryFiles

CLUSTER = 65536
FORMATS = {"vdi": {"block_size": str(CLUSTER)}, "vmdk": {}}


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def create(path: Path, format: str, size: int, files: MemoryFiles | None = None) -> None:
    create_image(path, size, format=format, options=FORMATS[format], files=files)


def test_threads_do_not_lose_each_others_writes(tmp_path: Path, format: str) -> None:
    path, size, count = tmp_path / f"disk.{format}", 24 * CLUSTER, 4
    create(path, format, size)
    expected = bytearray(size)
    pieces = list(range(0, size, 4096))
    random.Random(1).shuffle(pieces)

    def work(disk: Image, mine: list[int]) -> None:
        for offset in mine:
            disk.write(offset, expected[offset : offset + 4096])
            if offset % (5 * 4096) == 0:
                disk.flush()

    expected[:] = random.Random(2).randbytes(size)
    with open_image(path, format=format) as disk:
        threads = [threading.Thread(target=work, args=(disk, pieces[i::count])) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert disk.read(0, size) == expected
        assert disk.check().clean
    with open_image(path, format=format, readonly=True) as disk:
        assert disk.read(0, size) == expected


def test_pointers_wait_for_a_flush(format: str) -> None:
    path, files = Path(f"/disks/disk.{format}"), MemoryFiles()
    create(path, format, 4 * CLUSTER, files)
    disk = open_image(path, format=format, files=files)
    disk.write(0, b"x" * CLUSTER)
    with open_image(path, format=format, files=files, readonly=True) as now:
        assert now.read(0, 1) == b"\0"
    disk.flush()
    with open_image(path, format=format, files=files, readonly=True) as now:
        assert now.read(0, 1) == b"x"
    disk.close()


def test_a_flush_that_failed_can_be_done_again(format: str) -> None:
    path, memory = Path(f"/disks/disk.{format}"), MemoryFiles()
    create(path, format, 4 * CLUSTER, memory)
    failing: set[str] = set()
    disk = open_image(path, format=format, files=FaultyFiles(memory.content, failing.__contains__))
    disk.write(0, b"x" * CLUSTER)
    for operation in ("flush", "write"):
        failing.add(operation)
        with pytest.raises(OSError, match="Input/output error"):
            disk.flush()
        failing.clear()
    disk.close()
    with open_image(path, format=format, files=memory, readonly=True) as disk:
        assert disk.read(0, CLUSTER) == b"x" * CLUSTER
        assert disk.check().clean


def test_a_write_that_failed_changes_nothing_else(format: str) -> None:
    path, memory = Path(f"/disks/disk.{format}"), MemoryFiles()
    create(path, format, 4 * CLUSTER, memory)
    failing: set[str] = set()
    disk = open_image(path, format=format, files=FaultyFiles(memory.content, failing.__contains__))
    disk.write(0, b"x" * CLUSTER)
    failing.add("write")
    with pytest.raises(OSError, match="Input/output error"):
        disk.write(CLUSTER, b"y" * CLUSTER)
    failing.clear()
    assert disk.read(0, 2 * CLUSTER) == b"x" * CLUSTER + bytes(CLUSTER)
    disk.write(2 * CLUSTER, b"z" * CLUSTER)
    disk.close()
    with open_image(path, format=format, files=memory) as disk:
        assert disk.read(0, 3 * CLUSTER) == b"x" * CLUSTER + bytes(CLUSTER) + b"z" * CLUSTER
        assert disk.check(repair=True).clean
