"""The entropy device against virtio 1.2 §5.4, and its bound."""

from __future__ import annotations

from collections.abc import Callable

from sublet.devices.virtio.rng import VirtioRng
from sublet.testing import FakeClock, InlineExecutor, VirtioDriver


class Source:
    """A started device, what it produced, and the calls it wants later."""

    def __init__(self) -> None:
        self.produced = 0
        self.later: list[Callable[[], None]] = []
        self.clock = FakeClock()
        device = VirtioRng(InlineExecutor(), self.clock, source=self.supply, after=self.after)
        self.driver = VirtioDriver(device)
        self.driver.start()

    def supply(self, size: int) -> bytes:
        self.produced += size
        return b"\x5a" * size

    def after(self, delay_s: float, work: Callable[[], None]) -> None:
        assert delay_s > 0
        self.later.append(work)


def test_fills_the_buffer() -> None:
    """§5.4.6.2: "The device MUST place one or more random bytes into the buffer, but it MAY use less than
    the entire buffer length." """
    source = Source()
    queue = source.driver.queues[0]
    gpa = queue.alloc(100)
    queue.add([], [(gpa, 100)])
    source.driver.notify(0)
    assert queue.used() == [(0, 100)]
    assert source.driver.memory.read(gpa, 100) == b"\x5a" * 100


def test_a_giant_request_gets_a_bounded_answer() -> None:
    source = Source()
    queue = source.driver.queues[0]
    queue.add([], [(queue.alloc(4096), 0x4000_0000)])
    source.driver.notify(0)
    assert source.produced == 4096


def test_rate_is_bounded_and_service_resumes() -> None:
    source = Source()
    queue = source.driver.queues[0]
    gpa = queue.alloc(4096)
    for _ in range(40):
        queue.add([], [(gpa, 4096)])
        source.driver.notify(0)
    assert source.produced == 1 << 16
    assert len(source.later) == 1
    source.clock.advance(0.0625)
    source.later.pop()()
    assert source.produced == 2 << 16


def test_default_source_is_random() -> None:
    driver = VirtioDriver(VirtioRng(InlineExecutor(), FakeClock()))
    driver.start()
    queue = driver.queues[0]
    first, second = queue.alloc(32), queue.alloc(32)
    queue.add([], [(first, 32)])
    queue.add([], [(second, 32)])
    driver.notify(0)
    assert driver.memory.read(first, 32) != driver.memory.read(second, 32)
