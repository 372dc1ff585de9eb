"""The console against virtio 1.2 §5.3."""

from __future__ import annotations

import pytest

from sublet.devices.virtio.console import VirtioConsole
from sublet.testing import InlineExecutor, VirtioDriver

RECEIVE, TRANSMIT = 0, 1


class Terminal:
    """A started console and what it wrote."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.console = VirtioConsole(self.output.extend, InlineExecutor(), columns=132, rows=43)
        self.driver = VirtioDriver(self.console)
        self.driver.start()

    def supply(self, size: int) -> int:
        """Make a receive buffer available and return its address."""
        queue = self.driver.queues[RECEIVE]
        gpa = queue.alloc(size)
        queue.add([], [(gpa, size)])
        self.driver.notify(RECEIVE)
        return gpa


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


def test_output(terminal: Terminal) -> None:
    queue = terminal.driver.queues[TRANSMIT]
    queue.add([terminal.driver.put(queue, b"hello "), terminal.driver.put(queue, b"world")], [])
    terminal.driver.notify(TRANSMIT)
    assert terminal.output == b"hello world"
    assert len(queue.used()) == 1


def test_input_waits_for_buffers_and_keeps_order(terminal: Terminal) -> None:
    assert terminal.console.receive(b"abcdef") == 6
    first, second = terminal.supply(4), terminal.supply(4)
    assert terminal.driver.queues[RECEIVE].used() == [(0, 4), (1, 2)]
    assert terminal.driver.memory.read(first, 4) + terminal.driver.memory.read(second, 2) == b"abcdef"


def test_input_after_buffers(terminal: Terminal) -> None:
    gpa = terminal.supply(64)
    terminal.console.receive(b"x")
    assert terminal.driver.memory.read(gpa, 1) == b"x"
    assert terminal.driver.line.level


def test_input_is_bounded(terminal: Terminal) -> None:
    assert terminal.console.receive(bytes(300 * 1024)) == 256 * 1024
    assert terminal.console.receive(b"x") == 0


def test_size_and_resize(terminal: Terminal) -> None:
    assert (terminal.driver.config(0, 2), terminal.driver.config(2, 2)) == (132, 43)
    terminal.console.resize(80, 24)
    assert terminal.driver.config(0, 2) == 80
    assert terminal.driver.read(0x1000, 1) == 2


def test_emergency_write_needs_no_driver() -> None:
    output = bytearray()
    driver = VirtioDriver(VirtioConsole(output.extend, InlineExecutor()))
    driver.write(0x2000 + 8, 4, ord("!"))
    assert output == b"!"


def test_waiting_input_survives_save_and_load(terminal: Terminal) -> None:
    terminal.console.receive(b"typed")
    other = Terminal()
    other.console.load_state(terminal.console.save_state())
    gpa = other.supply(8)
    assert other.driver.memory.read(gpa, 5) == b"typed"
