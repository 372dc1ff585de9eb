"""The 16550A against its data sheet, register by register."""

from __future__ import annotations

import pytest

from sublet.devices.legacy import Serial
from sublet.testing import FakeClock, RecordingIrqLine

DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCRATCH = 0, 1, 2, 2, 3, 4, 5, 6, 7
RX, TX, LINE, MODEM = 1, 2, 4, 8


class Port:
    """A port with its surroundings, seen from the guest."""

    def __init__(self) -> None:
        self.irq = RecordingIrqLine()
        self.clock = FakeClock()
        self.output = bytearray()
        self.serial = Serial(self.irq, self.output.extend, self.clock)

    def read(self, register: int) -> int:
        return self.serial.pio_read(register, 1)

    def write(self, register: int, value: int) -> None:
        self.serial.pio_write(register, 1, value)

    def read_all(self) -> bytes:
        found = bytearray()
        while self.read(LSR) & 1:
            found.append(self.read(DATA))
        return bytes(found)


@pytest.fixture
def port() -> Port:
    return Port()


def test_transmits_bytes_in_order(port: Port) -> None:
    for byte in b"hello":
        assert port.read(LSR) & 0x60 == 0x60
        port.write(DATA, byte)
    assert port.output == b"hello"


def test_divisor_hides_data_and_ier_while_dlab_is_set(port: Port) -> None:
    port.write(LCR, 0x80)
    port.write(DATA, 0x34)
    port.write(IER, 0x12)
    assert (port.read(DATA), port.read(IER)) == (0x34, 0x12)
    port.write(LCR, 3)
    assert port.read(IER) == 0
    assert port.output == b""


def test_scratch_keeps_its_byte(port: Port) -> None:
    port.write(SCRATCH, 0xA5)
    assert port.read(SCRATCH) == 0xA5


def test_iir_reports_fifos_only_when_enabled(port: Port) -> None:
    assert port.read(IIR) == 0x01
    port.write(FCR, 1)
    assert port.read(IIR) == 0xC1
    port.write(FCR, 0)
    assert port.read(IIR) == 0x01


def test_ier_keeps_four_bits(port: Port) -> None:
    port.write(IER, 0xFF)
    assert port.read(IER) == 0x0F


def test_enabling_thre_interrupt_raises_it_and_reading_iir_clears_it(port: Port) -> None:
    port.write(IER, TX)
    assert port.irq.level
    assert port.read(IIR) == 0x02
    assert not port.irq.level
    assert port.read(IIR) == 0x01


def test_every_transmitted_byte_gives_an_edge(port: Port) -> None:
    port.write(IER, TX)
    port.read(IIR)
    before = port.irq.edges
    for byte in b"abc":
        port.write(DATA, byte)
    assert port.irq.edges == before + 3


def test_reading_iir_for_a_higher_source_leaves_thre_pending(port: Port) -> None:
    port.write(IER, TX | RX)
    port.serial.receive(b"x")
    assert port.read(IIR) == 0x04
    port.read(DATA)
    assert port.read(IIR) == 0x02


def test_priorities_line_then_data_then_thre_then_modem(port: Port) -> None:
    port.write(MCR, 0x10)
    port.write(DATA, 1)
    port.write(DATA, 2)  # overrun in a one-byte receiver
    port.write(MCR, 0x12)  # CTS changes in loopback
    port.write(IER, RX | TX | LINE | MODEM)
    assert port.read(IIR) == 0x06
    assert port.read(LSR) & 2
    assert port.read(IIR) == 0x04
    assert port.read(DATA) == 2
    assert port.read(IIR) == 0x02
    assert port.read(IIR) == 0x00
    port.read(MSR)
    assert port.read(IIR) == 0x01
    assert not port.irq.level


def test_fifo_below_trigger_reports_timeout(port: Port) -> None:
    port.write(FCR, 0x81)  # trigger at 8
    port.write(IER, RX)
    port.serial.receive(b"1234")
    assert port.read(IIR) == 0xCC
    port.read_all()
    port.serial.receive(b"12345678")
    assert port.read(IIR) == 0xC4


def test_loopback_receives_what_it_sends_and_outputs_nothing(port: Port) -> None:
    port.write(MCR, 0x1F)
    port.write(DATA, 0x5A)
    assert port.read(DATA) == 0x5A
    assert port.read(MSR) & 0xF0 == 0xF0
    assert port.output == b""


def test_msr_deltas_clear_on_read(port: Port) -> None:
    assert port.read(MSR) == 0xB0
    port.write(MCR, 0x10)  # everything drops in loopback
    assert port.read(MSR) == 0x0B
    assert port.read(MSR) == 0x00


def test_fifo_overrun_keeps_the_first_sixteen(port: Port) -> None:
    port.write(FCR, 1)
    port.write(MCR, 0x10)
    for byte in range(20):
        port.write(DATA, byte)
    assert port.read(LSR) & 2
    assert port.read_all() == bytes(range(16))


def test_fcr_clear_empties_the_receiver(port: Port) -> None:
    port.write(FCR, 1)
    port.serial.receive(b"abc")
    port.write(FCR, 3)
    assert not port.read(LSR) & 1


def test_pasted_text_of_100_kb_arrives_whole(port: Port) -> None:
    text = bytes(range(256)) * 400
    offered, arrived = text, b""
    port.write(FCR, 0xC1)
    while len(arrived) < len(text):
        offered = offered[port.serial.receive(offered) :]
        port.clock.advance(0.01)
        port.serial.service()
        arrived += port.read_all()
    assert arrived == text


def test_input_is_bounded_and_says_what_it_took(port: Port) -> None:
    first = port.serial.receive(bytes(300 * 1024))
    assert first == 256 * 1024
    assert port.serial.receive(b"more") < 4 or first < 300 * 1024


def test_line_rate_limits_a_burst(port: Port) -> None:
    port.write(FCR, 1)
    port.serial.receive(bytes(100_000))
    assert len(port.read_all()) == 2048
    port.clock.advance(1)
    port.serial.service()
    assert len(port.read_all()) == 2048  # what may have accumulated while idle


def test_dropped_rts_holds_input_back(port: Port) -> None:
    port.write(FCR, 1)
    port.write(MCR, 3)
    port.write(MCR, 1)
    port.serial.receive(b"x")
    assert not port.read(LSR) & 1
    port.write(MCR, 3)
    assert port.read(DATA) == ord("x")


def test_started_port_batches_and_close_flushes(port: Port) -> None:
    port.serial.start()
    for byte in b"x" * 100:
        port.write(DATA, byte)
    port.serial.close()
    assert port.output == b"x" * 100


@pytest.mark.parametrize("size", [2, 4])
def test_wide_reads_float(port: Port, size: int) -> None:
    assert port.serial.pio_read(0, size) == (1 << (8 * size)) - 1


def test_state_survives_save_and_load(port: Port) -> None:
    port.write(FCR, 0xC1)
    port.write(IER, RX | TX)
    port.write(SCRATCH, 7)
    port.serial.receive(b"x" * 40)
    other = Port()
    other.serial.load_state(port.serial.save_state())
    assert other.irq.level == port.irq.level
    assert other.read(SCRATCH) == 7
    assert other.read_all() == b"x" * 40


def test_reset_returns_to_power_on(port: Port) -> None:
    port.write(IER, TX)
    port.serial.reset()
    assert not port.irq.level
    assert [port.read(r) for r in (IER, IIR, LCR, MCR, LSR)] == [0, 1, 0, 0, 0x60]
