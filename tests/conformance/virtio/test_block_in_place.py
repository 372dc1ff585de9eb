"""Requests that the core serves by itself, against the device model on a disk in memory."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from sublet.block import BlockDevice, create_image, open_image
from sublet.block.layers import Throttle, Writethrough
from sublet.block.live.drive import Drive
from sublet.devices.virtio.block import VirtioBlock
from sublet.engine import Engine, RamBlock
from sublet.hw import Executor
from sublet.testing import InlineExecutor, ManualExecutor, RamDisk, VirtioDriver
from sublet.testing.memory import FakeGuestMemory

SIZE: Final = 1 << 20
READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES = 0, 1, 4, 11, 13
REQUESTS: Final = 400


class CountingImage:
    """Counts what reaches the methods of a device below a ``VirtioBlock``."""

    def __init__(self, below: BlockDevice) -> None:
        self.below = below
        self.calls = 0

    def __getattr__(self, name: str) -> object:
        self.calls += name in ("read", "readinto", "write")
        return getattr(self.below, name)


class Disk:
    """A started device and a driver that asks synchronously, one indirect chain a request."""

    def __init__(
        self, image: object, memory: FakeGuestMemory | None = None, executor: Executor | None = None
    ) -> None:
        device = VirtioBlock(image, executor or InlineExecutor())  # type: ignore[arg-type]
        self.driver = VirtioDriver(device, memory)
        self.driver.start()

    def request(self, kind: int, sector: int, data: bytes, room: int) -> tuple[int, bytes, int]:
        """(status, data read, written length)."""
        queue, memory = self.driver.queues[0], self.driver.memory
        readable = [self.driver.put(queue, struct.pack("<IIQ", kind, 0, sector))]
        half = len(data) // 2
        readable += [self.driver.put(queue, part) for part in (data[:half], data[half:]) if part]
        place, status = 0x80000, 0xF0000
        memory.write(place, bytes(room))
        parts = [(place, room // 2), (place + room // 2, room - room // 2)] if room > 1 else []
        queue.add_indirect(readable, [*parts, (status, 1)])
        self.driver.notify(0)
        ((_, written),) = queue.used()
        return memory.read(status, 1)[0], memory.read(place, room), written


@pytest.fixture
def memory() -> object:
    vm = Engine("translate").create_vm()
    vm.set_memslot(0, 0, 1 << 21, RamBlock(1 << 21))
    return vm.memory


@pytest.mark.parametrize("name", ["disk.raw", "disk.qcow2"])
@pytest.mark.parametrize("cluster", ["512", "65536"])
def test_it_answers_as_the_model(tmp_path: Path, memory: FakeGuestMemory, name: str, cluster: str) -> None:
    options = {"cluster_size": cluster} if name.endswith("qcow2") else {}
    create_image(tmp_path / name, SIZE, format=name[5:], options=options)
    chance = random.Random(name + cluster)
    counting = CountingImage(Drive(open_image(tmp_path / name, format=name[5:])))
    model, disk = Disk(RamDisk(SIZE)), Disk(counting, memory)
    for _ in range(REQUESTS):
        kind = chance.choice([READ, READ, WRITE, WRITE, WRITE, FLUSH, DISCARD, WRITE_ZEROES, 99])
        sectors = chance.choice([1, 1, 8, 20, 0])
        sector = chance.choice([chance.randrange(2100), chance.randrange(64), 1 << 63])
        data = chance.randbytes(sectors * 512) if kind == WRITE else b""
        if kind in (DISCARD, WRITE_ZEROES):
            data = struct.pack("<QII", sector & 0xFFFF, sectors, 0)
        if kind == DISCARD:
            continue  # What is read afterwards is nobody's promise.
        room = sectors * 512 + chance.choice([0, 0, 0, 100]) if kind == READ else 0
        assert disk.request(kind, sector, data, room) == model.request(kind, sector, data, room)
    assert counting.below.read(0, SIZE) == model.driver.device._image.read(0, SIZE)  # type: ignore[attr-defined]
    counting.below.close()


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[CountingImage]:
    path = tmp_path / "disk.qcow2"
    create_image(path, SIZE, format="qcow2")
    drive = Drive(open_image(path, format="qcow2"))
    drive.write(0, bytes(SIZE))
    yield CountingImage(drive)
    drive.close()


def test_what_is_in_place_never_reaches_the_device(counting: CountingImage, memory: FakeGuestMemory) -> None:
    disk = Disk(counting, memory)
    assert disk.request(WRITE, 5, b"x" * 4096, 0)[0] == 0
    assert disk.request(READ, 5, b"", 4096) == (0, b"x" * 4096, 4097)
    assert not counting.calls


def test_a_drive_that_is_held_serves_by_itself(counting: CountingImage, memory: FakeGuestMemory) -> None:
    disk = Disk(counting, memory)
    drive = counting.below
    assert isinstance(drive, Drive)
    with drive.hold(512 << 10, 4096):
        assert disk.request(READ, 5, b"", 4096)[0] == 0
    assert counting.calls == 1
    assert disk.request(READ, 5, b"", 4096)[0] == 0
    assert counting.calls == 1


@pytest.mark.parametrize(("layer", "reads", "writes"), [(Writethrough, 0, 1), (Throttle, 1, 2)])
def test_layers_see_what_concerns_them(
    counting: CountingImage, memory: FakeGuestMemory, layer: type, reads: int, writes: int
) -> None:
    top = CountingImage(layer(counting.below))
    disk = Disk(top, memory)
    assert disk.request(READ, 5, b"", 4096)[0] == 0
    assert top.calls == reads
    assert disk.request(WRITE, 5, b"y" * 4096, 0)[0] == 0
    assert top.calls == writes


def _reads_without_waiting(path: Path) -> bool:
    """Whether the host's file system can say that a read would wait."""
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(512)], 0, os.RWF_NOWAIT) > 0
        except OSError:
            return False


def test_what_the_host_has_in_memory_is_read_on_the_drivers_own_thread(
    tmp_path: Path, counting: CountingImage, memory: FakeGuestMemory
) -> None:
    if not _reads_without_waiting(tmp_path / "disk.qcow2"):
        pytest.skip(f"the file system of {tmp_path} does not know reads that do not wait (RWF_NOWAIT)")
    executor = ManualExecutor()
    disk = Disk(counting, memory, executor)
    executor.run()
    assert disk.request(READ, 5, b"", 4096) == (0, bytes(4096), 4097)
    assert not executor.pending
    assert disk.driver.line.level
    with pytest.raises(ValueError, match="not enough values"):
        disk.request(WRITE, 5, b"x" * 4096, 0)
    assert executor.run() == 1
    assert len(disk.driver.queues[0].used()) == 1
