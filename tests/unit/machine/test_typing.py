"""Text with names of keys, and how it is typed."""

from __future__ import annotations

import pytest

from sublet.devices.legacy import I8042, KEYS
from sublet.errors import UsageError, WrongMoment
from sublet.machine.key_text import ALIASES, US_LAYOUT, parse_key_text
from sublet.machine.typist import keys_ahead, type_chords
from sublet.testing import FakeGuestMemory, RecordingIrqLine


@pytest.mark.parametrize(
    ("text", "chords"),
    [
        ("aB1!", [("a",), ("shift", "b"), ("1",), ("shift", "1")]),
        ("x{enter}\n", [("x",), ("enter",), ("enter",)]),
        ("{Ctrl-Alt-Del}", [("ctrl", "alt", "delete")]),
        ("{{}}", [("shift", "["), ("shift", "]")]),
        ("{f2}{ctrl--}{-}{alt-minus}", [("f2",), ("ctrl", "-"), ("-",), ("alt", "-")]),
        ("", []),
    ],
)
def test_what_is_pressed(text: str, chords: list[tuple[str, ...]]) -> None:
    assert parse_key_text(text) == chords


@pytest.mark.parametrize("text", ["é", "{enter", "a}", "{nokey}", "{}", "{ctrl-}x{", "{-ctrl}", "x" * 70000])
def test_what_cannot_be_typed(text: str) -> None:
    with pytest.raises(UsageError):
        parse_key_text(text)


def test_every_name_is_a_key() -> None:
    assert set(ALIASES.values()) <= set(KEYS)
    assert {key for chord in US_LAYOUT.values() for key in chord} <= set(KEYS)


class Guest:
    """Reads its keyboard while it is waited for."""

    def __init__(self, *, reads: bool = True) -> None:
        self.keys = I8042(RecordingIrqLine(), RecordingIrqLine(), bool, int)
        self.seen: list[int] = []
        self._reads = reads

    def sleep(self, seconds: float) -> None:
        while self._reads and self.keys.read_status() & 1:
            self.seen.append(self.keys.pio_read(0, 1))


def test_keys_go_down_in_order_and_up_in_reverse() -> None:
    guest = Guest()
    assert type_chords(guest.keys, [("ctrl", "c")], sleep=guest.sleep) == 1
    assert guest.seen == [0x14, 0x21, 0xF0, 0x21, 0xF0, 0x14]


def test_a_guest_that_does_not_read_is_reported() -> None:
    guest = Guest(reads=False)
    with pytest.raises(WrongMoment, match="took 0 keys"):
        type_chords(guest.keys, [("a",)], sleep=guest.sleep)


def test_typing_can_be_cancelled() -> None:
    guest = Guest()
    assert type_chords(guest.keys, [("a",)] * 5, sleep=guest.sleep, cancelled=lambda: bool(guest.seen)) == 1


def test_a_reset_ends_typing_without_a_complaint() -> None:
    guest, reset = Guest(reads=False), []

    def sleep(seconds: float) -> None:
        reset.append(True)

    assert type_chords(guest.keys, [("a",)] * 5, sleep=sleep, cancelled=lambda: len(reset) > 2) == 1


@pytest.mark.parametrize(
    ("head", "tail", "ahead"), [(0x1E, 0x1E, 0), (0x1E, 0x28, 5), (0x3C, 0x20, 2), (0x1F, 0x22, 0), (0, 0, 0)]
)
def test_keys_in_the_buffer_of_the_bios(head: int, tail: int, ahead: int) -> None:
    memory = FakeGuestMemory(0x1000)
    memory.write_u16(0x41A, head)
    memory.write_u16(0x41C, tail)
    assert keys_ahead(memory) == ahead


def test_typing_waits_for_a_program_that_is_behind() -> None:
    guest, behind, waited = Guest(), [9, 9, 9, 2], []

    def ahead() -> int:
        return behind.pop(0) if len(behind) > 1 else behind[0]

    def sleep(seconds: float) -> None:
        waited.append(len(behind))
        guest.sleep(seconds)

    assert type_chords(guest.keys, [("a",), ("b",)], ahead=ahead, sleep=sleep) == 2
    assert {3, 2, 1} <= set(waited)


def test_a_bios_that_never_moves_is_none() -> None:
    guest = Guest()
    assert type_chords(guest.keys, [("a",)] * 3, ahead=lambda: 15, sleep=guest.sleep) == 3
