"""The block device against virtio 1.2 §5.2."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from sublet.devices.virtio.block import VirtioBlock
from sublet.testing import InlineExecutor, RamDisk, VirtioDriver

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
NEEDS_RESET = 0x40
F_RO, F_FLUSH, F_MQ, F_DISCARD, F_WRITE_ZEROES = 1 << 5, 1 << 9, 1 << 12, 1 << 13, 1 << 14


class Disk:
    """A started block device and a driver that asks synchronously."""

    def __init__(self, *, readonly: bool = False, queues: int = 1) -> None:
        self.image = RamDisk(1 << 20, readonly=readonly)
        self.driver = VirtioDriver(VirtioBlock(self.image, InlineExecutor(), serial="disk-1", queues=queues))
        self.driver.start()

    def request(
        self,
        kind: int,
        sector: int = 0,
        data: bytes = b"",
        room: int = 0,
        queue_index: int = 0,
        pieces: int = 1,
    ) -> tuple[int, bytes, int]:
        """(status, data read, written length)."""
        queue = self.driver.queues[queue_index]
        readable = [self.driver.put(queue, struct.pack("<IIQ", kind, 0, sector))]
        readable += [self.driver.put(queue, data)] if data else []
        step = room // pieces
        buffers = [(queue.alloc(step), step) for _ in range(pieces)] if room else []
        status = (queue.alloc(1), 1)
        self.driver.memory.write(status[0], b"\xaa")
        queue.add_indirect(readable, [*buffers, status])
        self.driver.notify(queue_index)
        ((_, written),) = queue.used()
        content = b"".join(self.driver.memory.read(*buffer) for buffer in buffers)
        return self.driver.memory.read(status[0], 1)[0], content, written


@pytest.fixture
def disk() -> Disk:
    return Disk()


def test_configuration(disk: Disk) -> None:
    assert disk.driver.config(0, 8) == 2048
    assert disk.driver.config(20, 4) == 512
    assert disk.driver.config(24, 1) == 3
    assert disk.driver.config(34, 2) == 1
    assert disk.driver.config(60, 4) == 0


def test_write_then_read(disk: Disk) -> None:
    assert disk.request(OUT, 3, b"x" * 1024) == (OK, b"", 1)
    assert bytes(disk.image.data[3 * 512 : 5 * 512]) == b"x" * 1024
    assert disk.request(IN, 3, room=1024) == (OK, b"x" * 1024, 1025)


def test_read_into_several_buffers(disk: Disk) -> None:
    disk.image.data[:4096] = bytes(range(256)) * 16
    assert disk.request(IN, 0, room=4096, pieces=4)[:2] == (OK, bytes(range(256)) * 16)


def test_a_large_request_is_carried_out_in_pieces(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sublet.devices.virtio.block.device.SMALL", 0)
    monkeypatch.setattr("sublet.devices.virtio.block.device.PIECE", 2560)
    data = bytes(range(256)) * 32
    assert disk.request(OUT, 5, data) == (OK, b"", 1)
    assert bytes(disk.image.data[5 * 512 : 5 * 512 + 8192]) == data
    assert disk.request(IN, 5, room=8192, pieces=4) == (OK, data, 8193)


def test_header_may_be_split_anywhere(disk: Disk) -> None:
    """§2.7.4.1: "The device MUST NOT make assumptions about the particular arrangement of descriptors." """
    queue, memory = disk.driver.queues[0], disk.driver.memory
    raw = struct.pack("<IIQ", OUT, 0, 1) + b"y" * 512
    readable = [disk.driver.put(queue, raw[i : i + 7]) for i in range(0, len(raw), 7)]
    status = queue.alloc(1)
    queue.add_indirect(readable, [(status, 1)])
    disk.driver.notify(0)
    assert memory.read(status, 1) == b"\0"
    assert bytes(disk.image.data[512:1024]) == b"y" * 512


@pytest.mark.parametrize(("sector", "size"), [(2048, 512), (2047, 1024), (2**64 - 1, 512), (0, 100)])
def test_out_of_range_and_partial_sectors_fail(disk: Disk, sector: int, size: int) -> None:
    before = bytes(disk.image.data)
    assert disk.request(IN, sector, room=size)[0] == IOERR
    assert disk.request(OUT, sector, b"z" * size)[0] == IOERR
    assert bytes(disk.image.data) == before


def test_flush_reaches_the_image(disk: Disk) -> None:
    assert disk.request(FLUSH)[0] == OK
    assert disk.image.flushes == 1


def test_get_id_is_padded(disk: Disk) -> None:
    assert disk.request(GET_ID, room=20) == (OK, b"disk-1".ljust(20, b"\0"), 21)


def test_unknown_request(disk: Disk) -> None:
    """§5.2.6.2: VIRTIO_BLK_S_UNSUPP answers a request that the device does not support."""
    assert disk.request(99)[0] == UNSUPP


def test_discard_and_write_zeroes(disk: Disk) -> None:
    disk.image.data[:2048] = b"q" * 2048
    assert disk.request(WRITE_ZEROES, data=struct.pack("<QII", 1, 2, 1))[0] == OK
    assert bytes(disk.image.data[:2048]) == b"q" * 512 + bytes(1024) + b"q" * 512
    assert disk.request(DISCARD, data=struct.pack("<QIIQII", 0, 1, 0, 3, 1, 0))[0] == OK
    assert disk.image.discarded == [(0, 512), (1536, 512)]


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        (DISCARD, struct.pack("<QII", 0, 1, 1), UNSUPP),
        (WRITE_ZEROES, struct.pack("<QII", 0, 1, 2), UNSUPP),
        (DISCARD, struct.pack("<QII", 2048, 1, 0), IOERR),
        (WRITE_ZEROES, struct.pack("<QII", 0, 0xFFFF_FFFF, 0), IOERR),
        (DISCARD, b"short", IOERR),
        (DISCARD, b"", IOERR),
        (DISCARD, struct.pack("<QII", 0, 1, 0) * 17, IOERR),
    ],
)
def test_bad_ranges(disk: Disk, kind: int, data: bytes, expected: int) -> None:
    """§5.2.6.2: "The device MUST set the status byte to VIRTIO_BLK_S_UNSUPP for discard, secure erase and
    write zeroes commands if any unknown flag is set." For discard, unmap is one."""
    assert disk.request(kind, data=data)[0] == expected
    assert disk.image.discarded == []


def test_read_only_disk(disk: Disk) -> None:
    """§5.2.6.2: "A device MUST set the status byte to VIRTIO_BLK_S_IOERR for a write request if the
    VIRTIO_BLK_F_RO feature if offered, and MUST NOT write any data." """
    readonly = Disk(readonly=True)
    features = readonly.driver.device_features
    assert features & F_RO
    assert not features & (F_DISCARD | F_WRITE_ZEROES)
    for kind, data in [(OUT, bytes(512)), (DISCARD, bytes(16)), (WRITE_ZEROES, bytes(16))]:
        assert readonly.request(kind, data=data)[0] == IOERR


def test_host_errors_become_ioerr_and_are_reported_once(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    disk.image.failure = OSError(5, "I/O error")
    assert disk.request(IN, 0, room=512)[0] == IOERR
    assert disk.request(FLUSH)[0] == IOERR
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_request_without_status_needs_reset(disk: Disk) -> None:
    queue = disk.driver.queues[0]
    queue.add([disk.driver.put(queue, struct.pack("<IIQ", IN, 0, 0))], [])
    disk.driver.notify(0)
    assert disk.driver.status & NEEDS_RESET


def test_data_outside_ram_needs_reset(disk: Disk) -> None:
    queue = disk.driver.queues[0]
    header = disk.driver.put(queue, struct.pack("<IIQ", IN, 0, 0))
    queue.add([header], [(1 << 50, 512), (queue.alloc(1), 1)])
    disk.driver.notify(0)
    assert disk.driver.status & NEEDS_RESET


def test_several_queues() -> None:
    disk = Disk(queues=4)
    assert disk.driver.device_features & F_MQ
    assert disk.driver.config(34, 2) == 4
    for index in range(4):
        assert disk.request(OUT, index, bytes([index]) * 512, queue_index=index)[0] == OK
    assert [disk.image.data[512 * index] for index in range(4)] == [0, 1, 2, 3]


def test_resize_tells_the_driver(disk: Disk) -> None:
    disk.image.data.extend(bytes(512))
    disk.driver.device.resized()  # type: ignore[attr-defined]
    assert disk.driver.config(0, 8) == 2049
    assert disk.driver.line.level
    assert disk.driver.read(0x1000, 1) == 2


def test_worker_thread_serves_and_close_closes() -> None:
    image = RamDisk(1 << 16)
    image.data[:512] = b"w" * 512
    pool = ThreadPoolExecutor(2)
    driver = VirtioDriver(VirtioBlock(image, pool))
    driver.start(msix=True)
    queue = driver.queues[0]
    target, status = queue.alloc(512), queue.alloc(1)
    for _ in range(50):
        queue.add([driver.put(queue, struct.pack("<IIQ", IN, 0, 0))], [(target, 512), (status, 1)])
        driver.notify(0)
    pool.shutdown()
    assert len(queue.used()) == 50
    assert driver.memory.read(target, 512) == b"w" * 512
    driver.device.close()
    assert image.closed


def test_resets_beside_requests_in_flight_neither_hang_nor_fail() -> None:
    """§2.4.1: "A device MUST NOT send notifications or interact with the queues after indicating completion
    of the reset by reinitializing device status to 0, until the driver re-initializes the device." """
    image = RamDisk(1 << 16)
    pool = ThreadPoolExecutor(2)
    driver = VirtioDriver(VirtioBlock(image, pool, queues=2))
    for _ in range(100):
        driver.start(msix=True)
        for index, queue in enumerate(driver.queues):
            for _ in range(5):
                header = driver.put(queue, struct.pack("<IIQ", IN, 0, 0))
                queue.add_indirect([header], [(queue.alloc(512), 512), (queue.alloc(1), 1)])
                driver.notify(index)
        driver.status = 0
        done = driver.memory.read_u16(driver.queues[0].used_ring + 2)
        assert done <= 5
    pool.shutdown()
    assert driver.memory.read_u16(driver.queues[0].used_ring + 2) == done
