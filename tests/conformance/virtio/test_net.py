"""The network device against virtio 1.2 §5.1."""

from __future__ import annotations

import pytest

from sublet.devices.virtio.net import VirtioNet
from sublet.net import ALL_OFFLOADS, Offload
from sublet.net.packet import GSO_TCPV4, NEEDS_CHECKSUM, PacketHeader
from sublet.testing import FakeSink, InlineExecutor, VirtioDriver

RECEIVE, TRANSMIT, CONTROL = 0, 1, 2
MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("525400abcdef")
FRAME = MAC + OTHER + bytes(range(48))
NEEDS_RESET = 0x40
VERSION_1, F_MRG_RXBUF, F_CTRL_VLAN = 1 << 32, 1 << 15, 1 << 19


class Nic:
    """A started device between a driver and a fake sink."""

    def __init__(self, features: int | None = None, pairs: int = 1, offloads: Offload = ALL_OFFLOADS) -> None:
        self.sink = FakeSink(offloads)
        self.net = VirtioNet(self.sink, InlineExecutor(), mac=MAC, pairs=pairs)
        self.driver = VirtioDriver(self.net)
        self.driver.start(features)

    def supply(self, size: int, index: int = RECEIVE) -> int:
        queue = self.driver.queues[index]
        gpa = queue.alloc(size)
        queue.add([], [(gpa, size)])
        self.driver.notify(index)
        return gpa

    def transmit(self, packet: bytes, index: int = TRANSMIT) -> None:
        queue = self.driver.queues[index]
        queue.add([self.driver.put(queue, packet)], [])
        self.driver.notify(index)

    def command(self, kind: int, number: int, data: bytes, index: int = CONTROL) -> int:
        """Give a command; returns the device's answer."""
        queue = self.driver.queues[index]
        answer = queue.alloc(1)
        queue.add([self.driver.put(queue, bytes((kind, number)) + data)], [(answer, 1)])
        self.driver.notify(index)
        return self.driver.memory.read(answer, 1)[0]


@pytest.fixture
def nic() -> Nic:
    return Nic()


def test_configuration(nic: Nic) -> None:
    assert bytes(nic.driver.config(i, 1) for i in range(6)) == MAC
    assert nic.driver.config(6, 2) == 1
    assert nic.driver.config(10, 2) == 1500


def test_transmit_keeps_the_header(nic: Nic) -> None:
    nic.transmit(bytes(12) + FRAME)
    assert nic.sink.sent == [bytes(12) + FRAME]


@pytest.mark.parametrize("size", [1, 11, 25, 66000])
def test_packets_too_short_or_long_are_dropped(nic: Nic, size: int) -> None:
    nic.transmit(bytes(size))
    assert nic.sink.sent == []
    assert nic.net.dropped == 1
    assert not nic.driver.status & NEEDS_RESET


def test_a_full_sink_gets_the_rest_later(nic: Nic) -> None:
    nic.sink.room = 1
    for _ in range(3):
        nic.transmit(bytes(12) + FRAME)
    assert len(nic.sink.sent) == 1
    assert len(nic.driver.queues[TRANSMIT].used()) == 1
    nic.sink.room = 10
    nic.sink.card.send_ready()
    assert len(nic.sink.sent) == 3
    assert len(nic.driver.queues[TRANSMIT].used()) == 2


def test_receive_writes_header_with_one_buffer(nic: Nic) -> None:
    gpa = nic.supply(2048)
    assert nic.sink.deliver(FRAME) == 1
    assert nic.driver.memory.read(gpa, 12) == bytes(10) + b"\x01\0"
    assert nic.driver.memory.read(gpa + 12, 60) == FRAME
    assert nic.driver.queues[RECEIVE].used() == [(0, 72)]


def test_mergeable_buffers_count_themselves(nic: Nic) -> None:
    """§5.1.6.4: num_buffers tells how many buffers the packet, header included, is spread over."""
    buffers = [nic.supply(32) for _ in range(3)]
    nic.sink.deliver(FRAME)
    assert nic.driver.queues[RECEIVE].used() == [(0, 32), (1, 32), (2, 8)]
    raw = b"".join(nic.driver.memory.read(gpa, 32) for gpa in buffers)
    assert raw[10:12] == b"\x03\0"
    assert raw[12:72] == FRAME


def test_without_buffers_the_sink_keeps_the_packets(nic: Nic) -> None:
    nic.supply(32)
    assert nic.sink.deliver(FRAME) == 0
    assert nic.driver.queues[RECEIVE].used() == []
    assert nic.driver.queues[RECEIVE].avail_event() == 1
    asked = nic.sink.ready
    nic.supply(64)
    assert nic.sink.ready == asked + 1
    assert nic.sink.deliver(FRAME) == 1
    assert nic.driver.queues[RECEIVE].used() == [(0, 32), (1, 40)]


def test_as_many_packets_are_taken_as_there_are_buffers(nic: Nic) -> None:
    for _ in range(3):
        nic.supply(2048)
    assert nic.sink.deliver(*[FRAME] * 5) == 3
    assert len(nic.driver.queues[RECEIVE].used()) == 3


def test_small_buffer_without_merging_is_the_drivers_fault() -> None:
    nic = Nic(VERSION_1)
    nic.supply(32)
    nic.sink.deliver(FRAME)
    assert nic.driver.status & NEEDS_RESET


def test_a_packet_larger_than_an_unmerged_buffer_is_dropped() -> None:
    nic = Nic(VERSION_1)
    nic.supply(1526)
    assert nic.sink.deliver(FRAME + bytes(4000), FRAME) == 2
    assert nic.net.counters["dropped.size"] == 1
    assert nic.driver.queues[RECEIVE].used() == [(0, 72)]


def test_link_down_drops_and_tells(nic: Nic) -> None:
    nic.net.set_link(False)
    assert nic.driver.config(6, 2) == 0
    assert nic.driver.read(0x1000, 1) == 2
    nic.supply(2048)
    assert nic.sink.deliver(FRAME) == 1
    nic.transmit(bytes(12) + FRAME)
    assert nic.sink.sent == []
    assert nic.net.counters["dropped.link_down"] == 2
    nic.sink.card.set_carrier(False)
    nic.net.set_link(True)
    assert nic.driver.config(6, 2) == 0


def test_frames_before_the_driver_is_up_are_dropped() -> None:
    sink = FakeSink()
    net = VirtioNet(sink, InlineExecutor(), mac=MAC)
    driver = VirtioDriver(net)
    assert sink.deliver(FRAME) == 1
    assert net.counters["dropped.no_driver"] == 1
    driver.device.close()
    assert sink.closed


def test_multicast_address_is_refused() -> None:
    with pytest.raises(ValueError, match="unicast"):
        VirtioNet(FakeSink(), InlineExecutor(), mac=b"\x01" + bytes(5))


# Offloads


def tcp_packet(payload: int, size: int) -> bytes:
    """A packet of TCP over IPv4, its checksum not filled in, to be cut after ``size`` bytes of payload."""
    header = PacketHeader(NEEDS_CHECKSUM, GSO_TCPV4, 54, size, 34, 16).pack()
    ip = (
        bytes.fromhex("4500")
        + (40 + payload).to_bytes(2, "big")
        + bytes.fromhex("000100004006000001020304 05060708")
    )
    tcp = bytes.fromhex("04d20050000003e800000000501000ff00000000")
    return header + MAC + OTHER + b"\x08\0" + ip + tcp + bytes(payload)


def test_what_the_guest_takes_undone_is_told_and_delivered_whole(nic: Nic) -> None:
    assert nic.sink.guest_offloads == ALL_OFFLOADS
    gpa = nic.supply(65600)
    packet = tcp_packet(4000, 1460)
    assert nic.sink.card.receive([packet]) == 1
    assert nic.driver.memory.read(gpa, len(packet)) == packet
    assert nic.sink.card.receive([packet]) == 0, "the sink keeps it"
    assert len(nic.driver.queues[RECEIVE].used()) == 1


def test_a_guest_without_offloads_gets_segments() -> None:
    nic = Nic(VERSION_1 | F_MRG_RXBUF)
    assert nic.sink.guest_offloads == Offload.NONE
    for _ in range(2):
        nic.supply(2048)
    assert nic.sink.card.receive([tcp_packet(4000, 1460)]) == 1
    nic.supply(2048)
    sizes = [written for _, written in nic.driver.queues[RECEIVE].used()]
    assert sizes == [12 + 54 + 1460, 12 + 54 + 1460, 12 + 54 + 1080]


def test_a_sink_without_offloads_gets_segments() -> None:
    nic = Nic(offloads=Offload.NONE)
    assert not nic.driver.device_features & (1 | 1 << 11)
    nic.transmit(tcp_packet(3000, 1460))
    assert [len(frame) for frame in nic.sink.frames] == [1514, 1514, 134]


def test_a_header_that_lies_is_dropped() -> None:
    nic = Nic(offloads=Offload.NONE)
    nic.transmit(PacketHeader(NEEDS_CHECKSUM, 0, 0, 0, 60000, 16).pack() + FRAME)
    nic.transmit(PacketHeader(NEEDS_CHECKSUM, GSO_TCPV4, 54, 0, 34, 16).pack() + FRAME)
    assert nic.sink.sent == []
    assert nic.net.counters["dropped.bad_header"] == 2


def test_guest_offloads_are_chosen_at_run_time(nic: Nic) -> None:
    """§5.1.6.5.7: only among those negotiated."""
    assert nic.command(5, 0, (1 << 1).to_bytes(8, "little")) == 0
    assert nic.sink.guest_offloads == Offload.CHECKSUM
    assert nic.command(5, 0, (1 << 10).to_bytes(8, "little")) == 1


# Control queue


def test_own_broadcast_and_listed_addresses_are_received(nic: Nic) -> None:
    assert nic.command(0, 0, b"\0") == 0
    table = (1).to_bytes(4, "little") + OTHER + (1).to_bytes(4, "little") + bytes.fromhex("333300000001")
    assert nic.command(1, 0, table) == 0
    for _ in range(8):
        nic.supply(2048)
    wanted = [MAC, OTHER, b"\xff" * 6, bytes.fromhex("333300000001")]
    unwanted = [bytes.fromhex("525400000001"), bytes.fromhex("333300000002")]
    for destination in wanted + unwanted:
        nic.sink.deliver(destination + FRAME[6:])
    assert len(nic.driver.queues[RECEIVE].used()) == len(wanted)
    assert nic.net.counters["dropped.filtered"] == len(unwanted)


def test_vlans_are_filtered_when_negotiated() -> None:
    nic = Nic()
    tagged = FRAME[:12] + bytes.fromhex("81000005") + FRAME[12:]
    for _ in range(2):
        nic.supply(2048)
    nic.sink.deliver(tagged)
    assert nic.command(2, 0, b"\x05\0") == 0
    nic.sink.deliver(tagged)
    assert len(nic.driver.queues[RECEIVE].used()) == 1
    assert nic.command(2, 0, b"\x00\x10") == 1


def test_the_driver_may_set_the_address(nic: Nic) -> None:
    assert nic.command(1, 1, OTHER) == 0
    assert nic.net.mac == OTHER
    assert nic.command(1, 1, b"\x01" + OTHER[1:]) == 1
    nic.driver.status = 0
    assert nic.net.mac == MAC


@pytest.mark.parametrize(
    ("kind", "number", "data"),
    [(9, 0, b""), (0, 6, b"\0"), (0, 0, b""), (1, 0, b"\xff\xff\xff\xff"), (4, 0, b"\1\0")],
)
def test_nonsense_is_answered_with_an_error(nic: Nic, kind: int, number: int, data: bytes) -> None:
    assert nic.command(kind, number, data) == 1
    assert not nic.driver.status & NEEDS_RESET


def test_announcement_is_acknowledged(nic: Nic) -> None:
    nic.net.announce()
    assert nic.driver.config(6, 2) == 3
    assert nic.command(3, 0, b"") == 0
    assert nic.driver.config(6, 2) == 1


def test_a_flow_is_received_where_it_was_sent_from() -> None:
    """§5.1.6.5.6 automatic receive steering."""
    nic = Nic(pairs=2)
    assert nic.driver.config(8, 2) == 2
    assert nic.command(4, 0, b"\2\0", index=4) == 0
    for index in (0, 2):
        nic.supply(2048, index)
    nic.transmit(tcp_packet(10, 1460), index=3)
    nic.sink.card.receive([bytes(12) + tcp_packet(10, 1460)[12:]])
    assert len(nic.driver.queues[2].used()) == 1
    assert nic.driver.queues[0].used() == []


def test_state_survives(nic: Nic) -> None:
    nic.command(0, 0, b"\0")
    nic.command(1, 1, OTHER)
    nic.command(5, 0, (1 << 1).to_bytes(8, "little"))
    sink = FakeSink()
    twin = VirtioNet(sink, InlineExecutor(), mac=MAC)
    driver = VirtioDriver(twin, nic.driver.memory)
    driver.function.load_state(nic.driver.function.save_state())
    assert twin.mac == OTHER
    assert sink.guest_offloads == Offload.CHECKSUM
    assert not twin.filter.wants(bytes.fromhex("525400000001") + bytes(12), OTHER)
