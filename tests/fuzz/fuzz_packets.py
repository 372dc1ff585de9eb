"""Hostile guests and ports: random packets through offloads, filters, steering, the switch and an e1000.

    SUBLET_FUZZ_SECONDS=20 SUBLET_FUZZ_SEED=… python tests/fuzz/fuzz_packets.py

Nothing may be raised, grow without bound, or reach a port that it must not reach.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import time

from sublet.devices.net.e1000 import E1000
from sublet.devices.net.e1000 import registers as r
from sublet.devices.virtio.net.steering import Steering
from sublet.net import HEADER_SIZE, MAX_PACKET_SIZE, MIN_PACKET_SIZE, Offload
from sublet.net.capture import compile_filter
from sublet.net.offload import complete
from sublet.net.switch import protocol
from sublet.net.switch.forwarding import MAX_LEARNED, Forwarding
from sublet.net.switch.protocol import Join, ProtocolError
from sublet.testing import FakeClock, FakeGuestMemory, FakeSink, InlineExecutor

STEPS = 400
FILTERS = ("port 53", "not (arp or ip6) and net 10.0.0.0/8", "vlan 5 or ether host 52:54:00:00:00:01")


def mac(number: int) -> bytes:
    return b"\x52\x54\0\0\0" + bytes((number,))


def random_packet(rng: random.Random) -> bytes:
    """Between a correct TCP packet and noise."""
    payload = rng.randbytes(rng.choice((0, 1, 50, 1460, 5000)))
    version = rng.choice((4, 6))
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 3, 4, rng.choice((0x50, rng.randrange(256))), 0x18, 5, 6, 0)
    if version == 4:
        ip = struct.pack(">BBHHHBBH", rng.choice((0x45, 0x4F)), 0, 40 + len(payload), 1, 0, 64, 6, 0) + bytes(
            8
        )
    else:
        ip = struct.pack(">IHBB", 6 << 28, 20 + len(payload), rng.choice((6, 17, 0, 44)), 64) + bytes(32)
    ether = mac(rng.randrange(5)) + mac(rng.randrange(5)) + (b"\x08\0" if version == 4 else b"\x86\xdd")
    header = struct.pack(
        "<BBHHHHH", rng.choice((0, 1, 2, 0x80)), rng.choice((0, 1, 4, 5, 0x81, 3)), 54,
        rng.choice((0, 1, 1460, 65535)), rng.choice((34, 54, 65535)), rng.choice((16, 6, 65535)), 1,
    )  # fmt: skip
    packet = bytearray(header + ether + ip + tcp + payload)
    for _ in range(rng.choice((0, 0, 1, 5))):
        packet[rng.randrange(len(packet))] = rng.randrange(256)
    return bytes(packet[: max(MIN_PACKET_SIZE, rng.randrange(len(packet) * 2))])


def fuzz_functions(rng: random.Random) -> None:
    """What packets are given to one by one."""
    filters = [compile_filter(text) for text in FILTERS]
    steering = Steering()
    for _ in range(STEPS):
        packet = random_packet(rng)
        made = complete(packet, Offload(rng.randrange(128)))
        assert all(MIN_PACKET_SIZE <= len(each) <= len(packet) for each in made)
        for wants in filters:
            wants(packet[HEADER_SIZE:])
        steering.learn([packet], rng.randrange(4))
        assert sum(len(run) for _, run in steering.runs([packet] * 3, 4)) == 3


def fuzz_switch(rng: random.Random) -> None:
    """Isolated, spoofing and mirroring ports."""
    clock = FakeClock()
    forwarding = Forwarding(clock)
    flags = ({}, {"spoof": True}, {"isolated": True}, {"isolated": True, "spoof": True}, {"mirror": True})
    ports = [forwarding.join(Join(str(n), mac(n).hex(), **each)) for n, each in enumerate(flags)]
    for _ in range(STEPS):
        source = rng.choice(ports)
        message = b"".join(
            struct.pack("<I", len(packet)) + packet for packet in (random_packet(rng) for _ in range(3))
        )
        damaged = message[: rng.choice((len(message), rng.randrange(len(message))))]
        try:
            packets = list(protocol.split_packets(memoryview(damaged)))
        except ProtocolError:
            continue
        reached = forwarding.forward(source, packets)
        assert source not in reached
        if source.join.isolated:
            assert not any(port.join.isolated for port in reached)
        assert not (source.join.mirror and reached)
        assert all(len(port.learned) <= MAX_LEARNED for port in ports)
        clock.advance(rng.random() * 100)


def fuzz_e1000(rng: random.Random) -> None:
    """Registers, descriptors and packets at random."""
    memory, sink = FakeGuestMemory(1 << 18), FakeSink(Offload(rng.randrange(128)))
    card = E1000(sink, memory, InlineExecutor(), FakeClock(), mac=mac(0))
    card.config_write(4, 2, 7)
    for base in (r.TDBAL, r.RDBAL):
        card.mmio_write(base, 4, rng.randrange(8) << 12)
        card.mmio_write(base + 8, 4, rng.choice((0x80, 0x100, 0xFFFFF)))
    card.mmio_write(r.TCTL, 4, r.TCTL_EN)
    card.mmio_write(r.RCTL, 4, r.RCTL_EN | rng.getrandbits(27))
    for _ in range(STEPS):
        where = rng.randrange(0x800) * 16
        low = rng.getrandbits(32) & rng.choice((0xFFFFFFFF, 0xFF0005FF))
        memory.write(where, struct.pack("<QII", rng.randrange(1 << 19), low, rng.getrandbits(32)))
        offset = rng.choice((r.TDT, r.RDT, r.TDH, r.RDH, *r.WRITABLE, r.IMS, r.ICS, r.EECD, r.MDIC))
        card.mmio_write(offset, 4, rng.choice((rng.randrange(16), rng.getrandbits(32))))
        card.mmio_read(rng.choice((r.ICR, r.EECD, r.STATUS, rng.randrange(0x8000) * 4)), 4)
        sink.card.receive([random_packet(rng) for _ in range(3)])
        assert all(MIN_PACKET_SIZE <= len(packet) <= MAX_PACKET_SIZE for packet in sink.sent)
        sink.sent.clear()
        sink.room = rng.choice((0, 1, 1000))
    card.load_state(card.save_state())
    card.close()


def main() -> None:
    seed = int(os.environ.get("SUBLET_FUZZ_SEED") or random.SystemRandom().getrandbits(32))
    seconds = float(os.environ.get("SUBLET_FUZZ_SECONDS") or 20)
    print(f"fuzz_packets: seed {seed}, {seconds:g} s", flush=True)
    deadline = time.monotonic() + seconds
    rounds = 0
    while rounds == 0 or time.monotonic() < deadline:
        try:
            for target in (fuzz_functions, fuzz_switch, fuzz_e1000):
                target(random.Random(seed + rounds))
        except BaseException:
            print(f"repeat with SUBLET_FUZZ_SEED={seed + rounds} SUBLET_FUZZ_SECONDS=0", file=sys.stderr)
            raise
        rounds += 1
    print(f"fuzz_packets: {rounds} rounds, nothing found")


if __name__ == "__main__":
    main()
