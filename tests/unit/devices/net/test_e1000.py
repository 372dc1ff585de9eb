"""The 82540EM against its manual (Intel 317453-006)."""

from __future__ import annotations

import random
import struct
import zlib

import pytest

from sublet.devices.net.e1000 import E1000
from sublet.devices.net.e1000 import registers as r
from sublet.net import ALL_OFFLOADS, Offload
from sublet.net.checksum import internet_checksum
from sublet.net.packet import GSO_TCPV4, NEEDS_CHECKSUM, unpack_header
from sublet.testing import FakeClock, FakeGuestMemory, FakeSink, InlineExecutor

MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("525400abcdef")
FRAME = MAC + OTHER + b"\x08\0" + bytes(range(60))
TX_RING, RX_RING, BUFFERS, RING = 0x1000, 0x2000, 0x10000, 16
EOP, IFCS, IC, RS, DEXT, VLE, TSE = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40, 0x04
DATA, TXSM = 1 << 20, 0x200


class Machine:
    """A card with its rings set up, and the driver's side of it."""

    def __init__(self, offloads: Offload = ALL_OFFLOADS) -> None:
        self.memory = FakeGuestMemory()
        self.sink = FakeSink(offloads)
        self.clock = FakeClock(10**9)
        self.card = E1000(self.sink, self.memory, InlineExecutor(), self.clock, mac=MAC)
        self.levels: list[bool] = []
        self.card.connect_intx(self.levels.append)
        self.card.config_write(4, 2, 7)
        self.tail = 0
        self.write(r.TDBAL, TX_RING, r.TDLEN, RING * 16, r.TCTL, r.TCTL_EN)
        self.write(r.RDBAL, RX_RING, r.RDLEN, RING * 16)
        self.write(r.RCTL, r.RCTL_EN | r.RCTL_BAM | r.RCTL_SECRC)
        for index in range(RING):
            self.memory.write_u64(RX_RING + 16 * index, BUFFERS + 0x1000 * index)

    def write(self, *pairs: int) -> None:
        for offset, value in zip(pairs[::2], pairs[1::2], strict=True):
            self.card.mmio_write(offset, 4, value)

    def read(self, offset: int) -> int:
        return self.card.mmio_read(offset, 4)

    def describe(self, address: int, low: int, high: int = 0) -> int:
        """Put a descriptor into the transmit ring; returns where."""
        where = TX_RING + 16 * self.tail
        self.memory.write(where, struct.pack("<QII", address, low, high))
        self.tail = (self.tail + 1) % RING
        return where

    def buffer(self, data: bytes) -> int:
        self.memory.write(0x80000, data)
        return 0x80000

    def go(self) -> None:
        self.write(r.TDT, self.tail)

    def receive(self, *frames: bytes, buffers: int = RING - 1) -> int:
        self.write(r.RDT, buffers)
        return self.sink.deliver(*frames)

    def received(self, index: int = 0) -> tuple[bytes, int, int]:
        """(data, status, tag) of a receive descriptor."""
        address, length, _, status, _, tag = struct.unpack(
            "<QHHBBH", self.memory.read(RX_RING + 16 * index, 16)
        )
        return self.memory.read(address, length), status, tag


@pytest.fixture
def machine() -> Machine:
    return Machine()


# Registers


def test_the_address_is_in_the_filter_and_the_eeprom_and_its_checksum_is_right(machine: Machine) -> None:
    assert machine.read(r.RAL) == int.from_bytes(MAC[:4], "little")
    words = []
    for address in range(64):
        machine.write(r.EERD, address << 8 | 1)
        assert machine.read(r.EERD) & 0x10
        words.append(machine.read(r.EERD) >> 16)
    assert b"".join(word.to_bytes(2, "little") for word in words[:3]) == MAC
    assert sum(words) & 0xFFFF == 0xBABA


def test_the_eeprom_is_read_bit_by_bit_too(machine: Machine) -> None:
    """§5.3: chip select, start bit, opcode, address; then a zero and sixteen bits."""
    sk, cs, di, do, req = 1, 2, 4, 8, 0x40
    machine.write(r.EECD, req)
    assert machine.read(r.EECD) & 0x80
    for bit in f"{0b110:03b}{1:06b}":
        level = req | cs | (di if bit == "1" else 0)
        machine.write(r.EECD, level, r.EECD, level | sk, r.EECD, level)
    assert not machine.read(r.EECD) & do
    word = 0
    for _ in range(16):
        machine.write(r.EECD, req | cs | sk)
        word = word << 1 | bool(machine.read(r.EECD) & do)
        machine.write(r.EECD, req | cs)
    assert word.to_bytes(2, "little") == MAC[2:4]


def test_the_phy_is_one_that_drivers_know_and_negotiates_at_once(machine: Machine) -> None:
    def phy(register: int) -> int:
        machine.write(r.MDIC, 2 << 26 | 1 << 21 | register << 16)
        assert machine.read(r.MDIC) >> 28 & 1
        return machine.read(r.MDIC) & 0xFFFF

    assert (phy(2), phy(3)) == (0x0141, 0x0C20)
    assert phy(1) & 0x24 == 0x24
    machine.write(r.IMS, r.INT_LSC)
    machine.write(r.MDIC, 1 << 26 | 1 << 21 | 0 << 16 | 0x1340)
    assert machine.levels[-1]
    assert machine.read(r.ICR) == r.INT_LSC
    machine.card.set_link(False)
    assert not phy(1) & 4
    assert not machine.read(r.STATUS) & r.STATUS_LU
    machine.write(r.MDIC, 2 << 26 | 2 << 21 | 1 << 16)
    assert machine.read(r.MDIC) >> 30 & 1, "no PHY at another address"


def test_reading_the_causes_clears_them_and_releases_the_pin(machine: Machine) -> None:
    machine.write(r.ICS, r.INT_RXT0)
    assert True not in machine.levels
    machine.write(r.IMS, r.INT_RXT0)
    assert machine.levels[-1]
    assert machine.read(r.ICR) & r.INT_RXT0
    assert not machine.levels[-1]
    assert machine.read(r.ICR) == 0


def test_interrupts_are_throttled(machine: Machine) -> None:
    machine.write(r.ITR, 1000, r.IMS, r.INT_ALL, r.ICS, 1)
    assert machine.levels[-1]
    machine.read(r.ICR)
    machine.write(r.ICS, 1)
    assert not machine.levels[-1], "256 µs are not over"
    machine.clock.advance(0.001)
    machine.write(r.ICS, 1)
    assert machine.levels[-1]
    machine.card.close()


def test_registers_by_io_ports(machine: Machine) -> None:
    machine.card.pio_write(0, 4, r.RAL)
    assert machine.card.pio_read(4, 4) == machine.read(r.RAL)


# Sending


def test_a_legacy_descriptor_sends_and_reports(machine: Machine) -> None:
    where = machine.describe(machine.buffer(FRAME), (EOP | IFCS | RS) << 24 | len(FRAME))
    machine.write(r.IMS, r.INT_TXDW)
    machine.go()
    assert machine.sink.frames == [FRAME]
    assert machine.memory.read(where + 12, 1) == b"\1"
    assert machine.levels[-1]
    assert machine.read(r.TDH) == 1
    assert machine.read(r.GPTC) == 1
    assert machine.read(r.GPTC) == 0, "reading clears"


def test_a_frame_of_several_buffers(machine: Machine) -> None:
    address = machine.buffer(FRAME)
    machine.describe(address, 20)
    machine.describe(address + 20, EOP << 24 | len(FRAME) - 20)
    machine.go()
    assert machine.sink.frames == [FRAME]


def test_a_legacy_checksum_is_left_to_the_sink(machine: Machine) -> None:
    machine.describe(machine.buffer(FRAME), (EOP | IC) << 24 | 40 << 16 | len(FRAME), 34 << 8)
    machine.go()
    header = unpack_header(machine.sink.sent[0])
    assert (header.flags, header.checksum_start, header.checksum_offset) == (NEEDS_CHECKSUM, 34, 6)


def tcp_frame(payload: bytes) -> bytes:
    """As a driver hands it over for segmentation: no length, no checksums (§3.3.7)."""
    ip = bytes.fromhex("450000000001000040060000 0a000001 0a000002")
    tcp = bytes.fromhex("04d20050000003e800000000501000ff00000000")
    return OTHER + MAC + b"\x08\0" + ip + tcp + payload


def context(machine: Machine, size: int) -> None:
    low = struct.unpack("<Q", struct.pack("<BBHBBH", 14, 24, 33, 34, 50, 0))[0]
    machine.describe(low, (DEXT | 0x03) << 24, 54 << 8 | size << 16)


@pytest.mark.parametrize("offloads", [ALL_OFFLOADS, Offload.NONE])
def test_segmentation(offloads: Offload) -> None:
    machine = Machine(offloads)
    data = random.Random(1).randbytes(4000)
    context(machine, 1460)
    machine.describe(
        machine.buffer(tcp_frame(data)), (EOP | DEXT | TSE) << 24 | DATA | 54 + len(data), TXSM | 0x100
    )
    machine.go()
    if offloads:
        (packet,) = machine.sink.sent
        header = unpack_header(packet)
        assert (header.gso_type, header.gso_size) == (GSO_TCPV4, 1460)
        assert int.from_bytes(packet[28:30], "big") == 40 + len(data)
        return
    frames = machine.sink.frames
    assert [len(frame) for frame in frames] == [1514, 1514, 1134]
    for frame in frames:
        pseudo = frame[26:34] + struct.pack(">HH", 6, len(frame) - 34)
        assert internet_checksum(pseudo + frame[34:]) == 0
        assert internet_checksum(frame[14:34]) == 0


def test_a_vlan_tag_is_inserted(machine: Machine) -> None:
    machine.describe(machine.buffer(FRAME), (EOP | VLE) << 24 | len(FRAME), 5 << 16)
    machine.go()
    assert machine.sink.frames == [FRAME[:12] + b"\x81\0\0\5" + FRAME[12:]]


def test_a_full_sink_gets_the_rest_later(machine: Machine) -> None:
    machine.sink.room = 1
    for _ in range(3):
        machine.describe(machine.buffer(FRAME), EOP << 24 | len(FRAME))
    machine.go()
    assert len(machine.sink.sent) == 1
    machine.sink.room = 9
    machine.sink.card.send_ready()
    assert len(machine.sink.sent) == 3


# Receiving


def test_a_frame_is_padded_and_reported(machine: Machine) -> None:
    machine.write(r.IMS, r.INT_RXT0)
    assert machine.receive(FRAME[:30]) == 1
    assert machine.received() == (FRAME[:30].ljust(60, b"\0"), 7, 0)
    assert machine.levels[-1]
    assert machine.read(r.RDH) == 1


def test_the_checksum_is_kept_unless_it_is_stripped(machine: Machine) -> None:
    machine.write(r.RCTL, r.RCTL_EN)
    machine.receive(FRAME)
    data = machine.received()[0]
    assert data == FRAME + zlib.crc32(FRAME).to_bytes(4, "little")


def test_a_long_frame_takes_several_buffers(machine: Machine) -> None:
    machine.write(r.RCTL, r.RCTL_EN | r.RCTL_SECRC | 3 << 16)
    machine.receive(FRAME + bytes(426))
    assert [len(machine.received(index)[0]) for index in (0, 1)] == [256, 244]
    assert [machine.received(index)[1] & 2 for index in (0, 1)] == [0, 2]


def test_without_buffers_the_sink_keeps_the_packets(machine: Machine) -> None:
    assert machine.receive(*[FRAME] * 5, buffers=3) == 4, "one is kept, to be stored first"
    asked = machine.sink.ready
    machine.write(r.RDT, 8)
    assert machine.sink.ready == asked + 1
    assert machine.read(r.RDH) == 4
    assert machine.sink.deliver(FRAME) == 1


@pytest.mark.parametrize(
    ("destination", "settings", "wanted"),
    [
        (MAC, {}, True),
        (OTHER, {}, False),
        (OTHER, {r.RCTL: r.RCTL_EN | r.RCTL_UPE}, True),
        (b"\xff" * 6, {}, True),
        (b"\xff" * 6, {r.RCTL: r.RCTL_EN}, False),
        (bytes.fromhex("01005e000001"), {}, False),
        (bytes.fromhex("01005e000001"), {r.MTA + 4 * (0x10 >> 5): 1 << 0x10}, True),
        (bytes.fromhex("01005e000001"), {r.RCTL: r.RCTL_EN | r.RCTL_MPE}, True),
        (OTHER, {r.RAL + 8: int.from_bytes(OTHER[:4], "little"), r.RAL + 12: 0x8000EFCD}, True),
    ],
)
def test_filters(machine: Machine, destination: bytes, settings: dict[int, int], wanted: bool) -> None:
    for offset, value in settings.items():
        machine.write(offset, value)
    machine.receive(destination + FRAME[6:])
    assert machine.read(r.RDH) == wanted
    assert machine.card.counters["dropped.filtered"] == (not wanted)


def test_vlans(machine: Machine) -> None:
    tagged = FRAME[:12] + b"\x81\0\x20\5" + FRAME[12:]
    machine.write(r.CTRL, r.CTRL_VME | r.CTRL_SLU, r.RCTL, r.RCTL_EN | r.RCTL_SECRC | r.RCTL_VFE)
    machine.receive(tagged)
    assert machine.read(r.RDH) == 0
    machine.write(r.VFTA, 1 << 5)
    machine.receive(tagged)
    assert machine.received() == (FRAME, 0xF, 0x2005)


# Bad input


@pytest.mark.parametrize(
    "settings",
    [
        {r.TDBAL: 0xFFFF_0000},
        {r.TDLEN: 0},
        {r.TDH: 500},
        {r.RDBAL: 0xFFFF_0000},
        {r.RDLEN: 0},
        {r.RDH: 500},
    ],
)
def test_nonsense_rings_stop_quietly(machine: Machine, settings: dict[int, int]) -> None:
    machine.write(*next(iter(settings.items())))
    machine.describe(machine.buffer(FRAME), EOP << 24 | len(FRAME))
    machine.go()
    machine.receive(FRAME, FRAME)


def test_a_buffer_outside_ram_loses_its_frame_only(machine: Machine) -> None:
    machine.describe(1 << 60, EOP << 24 | 100)
    machine.describe(machine.buffer(FRAME), EOP << 24 | len(FRAME))
    machine.go()
    assert machine.sink.frames == [FRAME]


def test_a_frame_without_end_is_bounded(machine: Machine) -> None:
    for _ in range(100):
        for _ in range(RING - 1):
            machine.describe(0, 0xFFFF)
        machine.go()
    assert len(machine.card.save_state()["assembler"]["data"]) < 70000


def test_a_frame_larger_than_the_ring_is_dropped(machine: Machine) -> None:
    machine.write(r.RDLEN, 0x80, r.RCTL, r.RCTL_EN | r.RCTL_LPE | 3 << 16)
    assert machine.receive(FRAME + bytes(4000), FRAME, buffers=7) == 2
    assert machine.card.counters["dropped.size"] == 1


def test_state_survives_and_reset_forgets(machine: Machine) -> None:
    machine.write(r.IMS, 5, r.RCTL, r.RCTL_EN | r.RCTL_UPE)
    machine.describe(machine.buffer(FRAME), 20)
    machine.go()
    twin = Machine()
    twin.card.load_state(machine.card.save_state())
    assert twin.read(r.IMS) == 5
    twin.memory.ram[:] = machine.memory.ram
    twin.tail = 1
    twin.describe(machine.buffer(FRAME) + 20, EOP << 24 | len(FRAME) - 20)
    twin.memory.write(0x80000, FRAME)
    twin.go()
    assert twin.sink.frames == [FRAME]
    twin.card.reset()
    assert twin.read(r.IMS) == twin.read(r.TDT) == 0
    assert twin.read(r.RAL) == int.from_bytes(MAC[:4], "little")


def test_random_registers_and_memory_do_no_harm(machine: Machine) -> None:
    rng = random.Random(1)
    interesting = [*r.WRITABLE, r.ICR, r.ICS, r.IMS, r.IMC, r.EECD, r.EERD, r.MDIC]
    for _ in range(20000):
        offset = rng.choice(interesting) if rng.random() < 0.7 else rng.randrange(0x20000)
        value = rng.choice((rng.randrange(64), rng.getrandbits(20), rng.getrandbits(32)))
        machine.card.mmio_write(offset, rng.choice((1, 2, 4, 4, 4, 8)), value)
        machine.card.mmio_read(rng.choice(interesting), 4)
        if rng.random() < 0.2:
            machine.memory.write(rng.randrange(0x4000), rng.randbytes(64))
        if rng.random() < 0.2:
            machine.sink.card.receive([rng.randbytes(rng.randrange(20, 3000)) for _ in range(3)])
        machine.sink.sent.clear()
    machine.card.close()
