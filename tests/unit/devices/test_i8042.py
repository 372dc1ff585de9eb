"""The keyboard controller: interrupts, A20, reset, what gets lost and what waits."""

from __future__ import annotations

from sublet.devices.legacy import I8042, KEYS
from sublet.devices.legacy.keyboard import QUEUE_LIMIT
from sublet.testing import RecordingIrqLine


class Board:
    """A controller with both interrupts on, translation off, and the keyboard scanning."""

    def __init__(self, config: int = 0x03) -> None:
        self.keyboard_irq, self.mouse_irq = RecordingIrqLine(), RecordingIrqLine()
        self.a20: list[bool] = []
        self.resets = 0
        self.i8042 = I8042(self.keyboard_irq, self.mouse_irq, self.a20.append, self._reset)
        self.command(0x60, config)

    def _reset(self) -> None:
        self.resets += 1

    def command(self, command: int, *arguments: int) -> None:
        self.i8042.write_command(command)
        for argument in arguments:
            self.i8042.pio_write(0, 1, argument)

    def mouse(self, *values: int) -> None:
        for value in values:
            self.command(0xD4, value)

    def data(self) -> list[int]:
        found = []
        while self.i8042.read_status() & 1:
            found.append(self.i8042.pio_read(0, 1))
        return found


def test_a_key_interrupts_once_a_byte() -> None:
    board = Board()
    board.i8042.press("up")
    assert board.keyboard_irq.level
    assert board.data() == [0xE0, 0x75]
    assert not board.keyboard_irq.level
    assert board.keyboard_irq.edges == 2
    assert not board.mouse_irq.level


def test_no_interrupt_without_the_enable_bit() -> None:
    board = Board(config=0x00)
    board.i8042.press("a")
    assert not board.keyboard_irq.level
    assert board.data() == [0x1C]


def test_a_stopped_keyboard_keeps_its_codes() -> None:
    board = Board(config=0x13)
    board.i8042.press("a")
    assert board.data() == []
    assert board.i8042.keys_waiting
    board.command(0xAE)
    assert board.data() == [0x1C]
    assert not board.i8042.keys_waiting


def test_sysrq_is_one_code_with_alt() -> None:
    board = Board(config=0x43)
    board.i8042.press("alt")
    board.i8042.press("print")
    assert board.data() == [0x38, 0x54]


def test_pause_has_no_break() -> None:
    board = Board(config=0x43)
    board.i8042.press("pause")
    board.i8042.release("pause")
    assert board.data() == [0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5]


def test_every_key_has_a_code_that_the_translation_knows() -> None:
    for name in KEYS:
        board = Board(config=0x43)
        assert board.i8042.press(name)
        assert board.data()[-1] & 0x80 == 0 or name == "pause", name


def test_a_guest_that_reads_nothing_loses_keys_and_no_more() -> None:
    board = Board()
    taken = [board.i8042.press("a") for _ in range(QUEUE_LIMIT + 10)]
    assert taken.count(True) == QUEUE_LIMIT + 1  # one is in the output buffer
    assert len(board.data()) == QUEUE_LIMIT + 1


def test_typing_into_a_disabled_keyboard_is_reported() -> None:
    board = Board()
    board.i8042.pio_write(0, 1, 0xF5)
    board.data()
    assert not board.i8042.press("a")


def test_leds() -> None:
    board = Board()
    for value in (0xED, 0x06):
        board.i8042.pio_write(0, 1, value)
    assert board.i8042.leds == 6


def test_mouse_packets_carry_what_did_not_fit() -> None:
    board = Board()
    board.mouse(0xF4)
    assert board.data() == [0xFA]
    board.i8042.move_mouse(300, -5)
    assert board.mouse_irq.level
    assert board.data() == [0x28, 255, 0xFB, 0x08, 45, 0]


def test_mouse_buttons_and_wheel() -> None:
    board = Board()
    board.mouse(0xF3, 200, 0xF3, 100, 0xF3, 80, 0xF4)
    board.data()
    board.i8042.set_mouse_buttons(0b101)
    board.i8042.move_mouse(0, 0, 3)
    assert board.data() == [0x0D, 0, 0, 0, 0x0D, 0, 0, 3]


def test_a20_by_the_output_port() -> None:
    board = Board()
    board.command(0xD1, 0xDD)
    board.command(0xD1, 0xDF)
    board.command(0xDD)
    assert board.a20 == [False, True, False]
    board.command(0xD0)
    assert board.data()[0] & 3 == 1


def test_reset_by_pulse_and_by_port() -> None:
    board = Board()
    board.command(0xFE)
    board.command(0xD1, 0xDE)
    board.command(0xFF)
    assert board.resets == 2


def test_reset_opens_a20_and_forgets() -> None:
    board = Board()
    board.command(0xDD)
    board.i8042.press("a")
    board.i8042.reset()
    assert board.a20[-1]
    assert board.data() == []


def test_state_round_trip() -> None:
    board = Board(config=0x43)
    board.mouse(0xF3, 200, 0xF3, 100, 0xF3, 80)
    board.i8042.press("f7")
    other = Board()
    other.i8042.load_state(board.i8042.save_state())
    assert other.i8042.save_state() == board.i8042.save_state()
    assert other.data() == board.data()
