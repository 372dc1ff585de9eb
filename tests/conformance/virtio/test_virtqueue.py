"""The split virtqueue against virtio 1.2 §2.7, hostile drivers first."""

from __future__ import annotations

import pytest

from sublet.devices.virtio.queue import DescriptorChain, Virtqueue, split_segments, write_segments
from sublet.errors import GuestError
from sublet.testing import DriverQueue, FakeGuestMemory

BASE = 0x1000
NEXT, WRITE, INDIRECT = 1, 2, 4


class Pair:
    """Both sides of one queue."""

    def __init__(self, size: int = 8, *, event_idx: bool = False, indirect: bool = True) -> None:
        self.memory = FakeGuestMemory(1 << 20)
        self.driver = DriverQueue(self.memory, BASE, size)
        parts = (self.driver.desc_table, self.driver.avail_ring, self.driver.used_ring)
        self.device = Virtqueue(self.memory, size, *parts, event_idx=event_idx, indirect=indirect)

    def refuses(self) -> str:
        with pytest.raises(GuestError) as caught:
            self.device.pop()
        return caught.value.message


def test_chain_keeps_order_and_direction() -> None:
    pair = Pair()
    head = pair.driver.add([(0x8000, 16), (0x9000, 32)], [(0xA000, 64), (0xB000, 1)])
    chain = pair.device.pop()
    assert chain == DescriptorChain(head, [(0x8000, 16), (0x9000, 32)], [(0xA000, 64), (0xB000, 1)])
    assert pair.device.pop() is None


def test_indirect_chain_equals_direct() -> None:
    pair = Pair()
    head = pair.driver.add_indirect([(0x8000, 16)], [(0xA000, 64)])
    assert pair.device.pop() == DescriptorChain(head, [(0x8000, 16)], [(0xA000, 64)])


def test_indirect_may_end_a_direct_chain() -> None:
    pair = Pair()
    table = pair.driver.alloc(16)
    pair.memory.write(table, (0xA000).to_bytes(8, "little") + (4).to_bytes(4, "little") + b"\x02\0\0\0")
    pair.driver.set_desc(0, 0x8000, 8, NEXT, 1)
    pair.driver.set_desc(1, table, 16, INDIRECT)
    pair.driver.make_available(0)
    assert pair.device.pop() == DescriptorChain(0, [(0x8000, 8)], [(0xA000, 4)])


def test_rings_wrap_many_times() -> None:
    pair = Pair(4)
    for count in range(70_000 // 3):
        heads = [pair.driver.add([(0x8000, 1 + count % 7)], []) for _ in range(3)]
        chains = pair.device.pop_batch(16)
        assert [chain.head for chain in chains] == heads
        pair.device.push_batch([(chain.head, 0) for chain in chains])
        assert [head for head, _ in pair.driver.used()] == heads


def test_batch_is_limited() -> None:
    pair = Pair()
    for _ in range(5):
        pair.driver.add([(0x8000, 1)], [])
    assert [len(pair.device.pop_batch(2)) for _ in range(4)] == [2, 2, 1, 0]


def test_used_elements_carry_written_length() -> None:
    pair = Pair()
    head = pair.driver.add([], [(0x8000, 10)])
    pair.device.pop()
    pair.device.push(head, 7)
    assert pair.driver.used() == [(head, 7)]


# Hostile drivers


def test_more_available_than_entries() -> None:
    """§2.7.13.3.1: the driver can expose at most Queue Size buffers."""
    pair = Pair(8)
    pair.driver.set_avail_idx(9)
    assert "9 chains available" in pair.refuses()


def test_head_past_the_table() -> None:
    pair = Pair(8)
    pair.driver.make_available(8)
    assert "descriptor 8" in pair.refuses()


def test_next_past_the_table() -> None:
    pair = Pair(8)
    pair.driver.set_desc(0, 0x8000, 1, NEXT, 0xFFFF)
    pair.driver.make_available(0)
    assert "descriptor 65535" in pair.refuses()


@pytest.mark.parametrize("following", [0, 1])
def test_loops_end(following: int) -> None:
    """§2.7.5.2: "Drivers MUST NOT add a descriptor chain longer than 2^32 bytes in total; this implies
    that loops in the descriptor chain are forbidden!" """
    pair = Pair(8)
    pair.driver.set_desc(0, 0x8000, 0, NEXT, 1)
    pair.driver.set_desc(1, 0x8000, 0, NEXT, following)
    pair.driver.make_available(0)
    assert "loops" in pair.refuses()


def test_chain_of_more_than_4_gib() -> None:
    pair = Pair(8)
    for index in range(3):
        pair.driver.set_desc(index, 0, 0xFFFF_FFFF, NEXT, index + 1)
    pair.driver.make_available(0)
    assert "4 GiB" in pair.refuses()


def test_buffer_past_the_address_space() -> None:
    pair = Pair(8)
    pair.driver.set_desc(0, 0xFFFF_FFFF_FFFF_FFFF, 2)
    pair.driver.make_available(0)
    assert "address space" in pair.refuses()


def test_readable_after_writable() -> None:
    """§2.7.4.2: "The driver MUST place any device-writable descriptor elements after any
    device-readable descriptor elements." """
    pair = Pair(8)
    pair.driver.set_desc(0, 0x8000, 4, NEXT | WRITE, 1)
    pair.driver.set_desc(1, 0x9000, 4)
    pair.driver.make_available(0)
    assert "readable descriptor after" in pair.refuses()


def test_indirect_without_the_feature() -> None:
    """§2.7.5.3.1: "The driver MUST NOT set the VIRTQ_DESC_F_INDIRECT flag unless the
    VIRTIO_F_INDIRECT_DESC feature was negotiated." """
    pair = Pair(indirect=False)
    pair.driver.add_indirect([(0x8000, 4)], [])
    assert "without the feature" in pair.refuses()


def test_indirect_with_next() -> None:
    """§2.7.5.3.1: "A driver MUST NOT set both VIRTQ_DESC_F_INDIRECT and VIRTQ_DESC_F_NEXT in flags." """
    pair = Pair()
    pair.driver.set_desc(0, 0x8000, 16, INDIRECT | NEXT, 1)
    pair.driver.make_available(0)
    assert "with NEXT" in pair.refuses()


def test_nested_indirect() -> None:
    """§2.7.5.3.1: "The driver MUST NOT set the VIRTQ_DESC_F_INDIRECT flag within an indirect descriptor." """
    pair = Pair()
    pair.memory.write(0x8000, (0x9000).to_bytes(8, "little") + (16).to_bytes(4, "little") + b"\x04\0\0\0")
    pair.driver.set_desc(0, 0x8000, 16, INDIRECT)
    pair.driver.make_available(0)
    assert "nested" in pair.refuses()


@pytest.mark.parametrize("length", [0, 15, 17, 16 * 1025, 0xFFFF_FFF0])
def test_indirect_table_of_a_bad_length(length: int) -> None:
    pair = Pair()
    pair.driver.set_desc(0, 0x8000, length, INDIRECT)
    pair.driver.make_available(0)
    assert "indirect table" in pair.refuses()


def test_indirect_loop_and_index() -> None:
    pair = Pair()
    for following, message in [(0, "loops"), (5, "indirect descriptor 5")]:
        entry = (0x9000).to_bytes(8, "little") + bytes(4) + bytes((1, 0, following, 0))
        pair.memory.write(0x8000, entry * 2)
        pair.driver.set_desc(0, 0x8000, 32, INDIRECT)
        pair.driver.set_avail_idx(0)
        pair.driver.make_available(0)
        assert message in pair.refuses()


@pytest.mark.parametrize("part", range(3))
def test_parts_outside_ram(part: int) -> None:
    memory = FakeGuestMemory(1 << 16)
    parts = [0x1000, 0x2000, 0x3000]
    parts[part] = 0x7FFF_FFFF_FFFF_F000
    queue = Virtqueue(memory, 8, *parts)
    memory.write_u16(0x2002, 1)
    with pytest.raises(GuestError):
        _ = queue.pop(), queue.push(0, 0)  # type: ignore[func-returns-value]


@pytest.mark.parametrize("parts", [(8, 0, 0), (0, 1, 0), (0, 0, 2), (2**64 - 16, 0, 0)])
def test_unaligned_parts_and_parts_past_the_address_space(parts: tuple[int, int, int]) -> None:
    """§2.7: the table, the avail ring and the used ring MUST be aligned to 16, 2 and 4 bytes."""
    with pytest.raises(GuestError):
        Virtqueue(FakeGuestMemory(), 8, *parts)


# Notifications


def test_interrupt_unless_the_driver_suppresses() -> None:
    pair = Pair()
    assert not pair.device.needs_interrupt()
    pair.device.push(0, 0)
    assert pair.device.needs_interrupt()
    assert not pair.device.needs_interrupt()
    pair.driver.suppress_interrupts()
    pair.device.push(0, 0)
    assert not pair.device.needs_interrupt()


@pytest.mark.parametrize(("event", "expected"), [(0, True), (1, True), (2, False), (0xFFFF, False)])
def test_event_idx_interrupts_when_passed(event: int, expected: bool) -> None:
    pair = Pair(event_idx=True)
    pair.driver.set_used_event(event)
    pair.device.push_batch([(0, 0), (1, 0)])
    assert pair.device.needs_interrupt() is expected


def test_enable_notifications_sees_what_came_meanwhile() -> None:
    for event_idx in (False, True):
        pair = Pair(event_idx=event_idx)
        pair.device.disable_notifications()
        assert not pair.device.enable_notifications()
        pair.driver.add([(0x8000, 1)], [])
        assert pair.device.enable_notifications()
        pair.device.pop()
        pair.device.enable_notifications()
        assert pair.driver.avail_event() == (1 if event_idx else 0)


def test_undo_pop_and_state() -> None:
    pair = Pair()
    pair.driver.add([(0x8000, 1)], [])
    first = pair.device.pop()
    pair.device.undo_pop(1)
    assert pair.device.pop() == first
    pair.device.push(0, 0)
    other = Pair()
    other.device.load_state(pair.device.save_state())
    assert other.device.save_state() == pair.device.save_state()


def test_segments_split_and_scatter() -> None:
    assert split_segments([(0, 4), (10, 4)], 6) == ([(0, 4), (10, 2)], [(12, 2)])
    assert split_segments([(0, 4)], 4) == ([(0, 4)], [])
    assert split_segments([(0, 4)], 0) == ([], [(0, 4)])
    memory = FakeGuestMemory()
    assert write_segments(memory, [(0, 2), (8, 2)], b"abc") == 3
    assert memory.read(0, 10) == b"ab\0\0\0\0\0\0c\0"
