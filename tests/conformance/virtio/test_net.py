"""The network device against virtio 1.2 §5.1."""

from __future__ import annotations

import pytest

from sublet.devices.virtio.net import VirtioNet
from sublet.net import FrameReceiver
from sublet.testing import InlineExecutor, VirtioDriver

RECEIVE, TRANSMIT = 0, 1
MAC = bytes.fromhex("525400123456")
FRAME = bytes(range(60))
NEEDS_RESET = 0x40
VERSION_1, F_MRG_RXBUF = 1 << 32, 1 << 15


class RecordingSink:
    """Keeps frames."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def attach(self, receive: FrameReceiver) -> None:
        self.receive = receive

    def send(self, frame: bytes) -> None:
        self.sent.append(frame)

    def close(self) -> None:
        self.closed = True


class Nic:
    """A started device between a driver and a recording sink."""

    def __init__(self, features: int | None = None) -> None:
        self.sink = RecordingSink()
        self.net = VirtioNet(self.sink, InlineExecutor(), mac=MAC)
        self.driver = VirtioDriver(self.net)
        self.driver.start(features)

    def supply(self, size: int) -> int:
        queue = self.driver.queues[RECEIVE]
        gpa = queue.alloc(size)
        queue.add([], [(gpa, size)])
        self.driver.notify(RECEIVE)
        return gpa

    def transmit(self, packet: bytes) -> None:
        queue = self.driver.queues[TRANSMIT]
        queue.add([self.driver.put(queue, packet)], [])
        self.driver.notify(TRANSMIT)


@pytest.fixture
def nic() -> Nic:
    return Nic()


def test_configuration(nic: Nic) -> None:
    assert bytes(nic.driver.config(i, 1) for i in range(6)) == MAC
    assert nic.driver.config(6, 2) == 1
    assert nic.driver.config(10, 2) == 1500


def test_transmit_strips_the_header(nic: Nic) -> None:
    nic.transmit(bytes(12) + FRAME)
    assert nic.sink.sent == [FRAME]


@pytest.mark.parametrize("size", [1, 11, 25, 66000])
def test_packets_too_short_or_long_are_dropped(nic: Nic, size: int) -> None:
    nic.transmit(bytes(size))
    assert nic.sink.sent == []
    assert nic.net.dropped == 1
    assert not nic.driver.status & NEEDS_RESET


def test_receive_writes_header_with_one_buffer(nic: Nic) -> None:
    gpa = nic.supply(2048)
    assert nic.sink.receive(FRAME)
    assert nic.driver.memory.read(gpa, 12) == bytes(10) + b"\x01\0"
    assert nic.driver.memory.read(gpa + 12, 60) == FRAME
    assert nic.driver.queues[RECEIVE].used() == [(0, 72)]


def test_mergeable_buffers_count_themselves(nic: Nic) -> None:
    """§5.1.6.4: num_buffers tells how many buffers the packet, header included, is spread over."""
    buffers = [nic.supply(32) for _ in range(3)]
    nic.sink.receive(FRAME)
    assert nic.driver.queues[RECEIVE].used() == [(0, 32), (1, 32), (2, 8)]
    raw = b"".join(nic.driver.memory.read(gpa, 32) for gpa in buffers)
    assert raw[10:12] == b"\x03\0"
    assert raw[12:72] == FRAME


def test_too_few_mergeable_buffers_wait_for_more(nic: Nic) -> None:
    nic.supply(32)
    nic.sink.receive(FRAME)
    assert nic.driver.queues[RECEIVE].used() == []
    assert nic.driver.queues[RECEIVE].avail_event() == 1
    nic.supply(64)
    assert nic.driver.queues[RECEIVE].used() == [(0, 32), (1, 40)]


def test_small_buffer_without_merging_is_the_drivers_fault() -> None:
    nic = Nic(VERSION_1)
    nic.supply(32)
    nic.sink.receive(FRAME)
    assert nic.driver.status & NEEDS_RESET


def test_frames_wait_for_buffers_up_to_a_bound(nic: Nic) -> None:
    taken = [nic.sink.receive(FRAME) for _ in range(300)]
    assert taken.count(True) == 256
    assert nic.net.dropped == 44
    nic.supply(2048)
    assert len(nic.driver.queues[RECEIVE].used()) == 1


def test_link_down_drops_and_tells(nic: Nic) -> None:
    nic.net.set_link(False)
    assert nic.driver.config(6, 2) == 0
    assert nic.driver.read(0x1000, 1) == 2
    assert not nic.sink.receive(FRAME)
    nic.transmit(bytes(12) + FRAME)
    assert nic.sink.sent == []


def test_frames_before_the_driver_is_up_are_dropped() -> None:
    sink = RecordingSink()
    driver = VirtioDriver(VirtioNet(sink, InlineExecutor(), mac=MAC))
    assert not sink.receive(FRAME)
    driver.device.close()
    assert sink.closed


def test_multicast_address_is_refused() -> None:
    with pytest.raises(ValueError, match="unicast"):
        VirtioNet(RecordingSink(), InlineExecutor(), mac=b"\x01" + bytes(5))
