"""The same conversation with our keyboard controller and with QEMU's: every byte and status must agree."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
from tests.judges.qemu import IdleQemu

from sublet.devices.legacy import I8042, KEYS
from sublet.devices.legacy.i8042 import STATUS_COMMAND, STATUS_SYSTEM
from sublet.testing import RecordingIrqLine

Program = Callable[["Controller"], object]

_QCODES = {
    "`": "grave_accent",
    "-": "minus",
    "=": "equal",
    "[": "bracket_left",
    "]": "bracket_right",
    ";": "semicolon",
    "'": "apostrophe",
    ",": "comma",
    ".": "dot",
    "/": "slash",
    "\\": "backslash",
    "enter": "ret",
    "space": "spc",
    "capslock": "caps_lock",
    "numlock": "num_lock",
    "scrolllock": "scroll_lock",
    "meta": "meta_l",
    "menu": "compose",
    "pageup": "pgup",
    "pagedown": "pgdn",
    "kp_period": "kp_decimal",
    "kp_minus": "kp_subtract",
    "kp_plus": "kp_add",
}
"""QEMU's names of keys where they are not ours."""


class Controller(Protocol):
    """Ports 60h and 64h, and keys."""

    def outb(self, port: int, value: int) -> None: ...
    def inb(self, port: int) -> int: ...
    def key(self, name: str, down: bool) -> None: ...


class Ours:
    """The controller under test."""

    def __init__(self) -> None:
        self.i8042 = I8042(RecordingIrqLine(), RecordingIrqLine(), bool, int)

    def outb(self, port: int, value: int) -> None:
        (self.i8042.command_port if port == 0x64 else self.i8042).pio_write(0, 1, value)

    def inb(self, port: int) -> int:
        return (self.i8042.command_port if port == 0x64 else self.i8042).pio_read(0, 1)

    def key(self, name: str, down: bool) -> None:
        (self.i8042.press if down else self.i8042.release)(name)


class Theirs(IdleQemu):
    """QEMU's."""

    def key(self, name: str, down: bool) -> None:
        super().key(_QCODES.get(name, name), down)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Controller, Controller]]:
    theirs = Theirs(tmp_path)
    try:
        yield Ours(), theirs
    finally:
        theirs.close()


def drain(controller: Controller) -> list[tuple[int, int]]:
    """Status and data until there is none; but for two bits that QEMU does not follow."""
    seen = []
    while (status := controller.inb(0x64) & ~(STATUS_COMMAND | STATUS_SYSTEM)) & 1:
        seen.append((status, controller.inb(0x60)))
    return [*seen, (status, -1)]


def agree(pair: tuple[Controller, Controller], program: Program) -> None:
    ours, theirs = (program(controller) for controller in pair)
    assert ours == theirs


def agree_on_each(
    pair: tuple[Controller, Controller], program: Callable[[Controller], dict[str, object]]
) -> None:
    """As `agree`, and say for which names not."""
    ours, theirs = (program(controller) for controller in pair)
    assert {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]} == {}


def talk(*steps: tuple[int, int]) -> Program:
    """Write (port, value) one by one, and read everything after each."""

    def program(controller: Controller) -> object:
        seen = [drain(controller)]
        for port, value in steps:
            controller.outb(port, value)
            seen.append(drain(controller))
        return seen

    return program


def keyboard(*values: int) -> Program:
    return talk(*((0x60, value) for value in values))


def mouse(*values: int) -> Program:
    return talk(*(step for value in values for step in ((0x64, 0xD4), (0x60, value))))


def test_power_on_and_self_tests(pair: tuple[Controller, Controller]) -> None:
    agree(pair, talk((0x64, 0x20), (0x64, 0xAA), (0x64, 0xAB), (0x64, 0xA9), (0x64, 0x20), (0x64, 0xD0)))


def test_the_configuration_byte(pair: tuple[Controller, Controller]) -> None:
    steps = [(0x64, 0x60), (0x60, 0x47), (0x64, 0x20), (0x64, 0xAD), (0x64, 0xA7), (0x64, 0x20)]
    agree(pair, talk(*steps, (0x64, 0xAE), (0x64, 0xA8), (0x64, 0x20)))


def test_bytes_put_back(pair: tuple[Controller, Controller]) -> None:
    agree(pair, talk((0x64, 0xD2), (0x60, 0x55), (0x64, 0xD3), (0x60, 0xAA)))


@pytest.mark.parametrize("config", [0x07, 0x47], ids=["plain", "translated"])
def test_keyboard_commands(pair: tuple[Controller, Controller], config: int) -> None:
    agree(pair, talk((0x64, 0x60), (0x60, config)))
    agree(pair, keyboard(0xFF, 0xF2, 0xEE, 0xED, 0x07, 0xF3, 0x20, 0xF0, 0x00, 0xF4, 0xF5, 0xF6))


def test_mouse_commands(pair: tuple[Controller, Controller]) -> None:
    agree(pair, mouse(0xFF, 0xF2, 0xE8, 0x03, 0xE7, 0xE9, 0xE6, 0xF3, 0x28, 0xE9, 0xF4, 0xF0, 0xE9, 0xEB))
    agree(pair, mouse(0xEE, 0x12, 0xEC, 0xEA, 0xF5, 0xF6, 0xE9))


def test_the_mouse_grows_a_wheel_and_buttons(pair: tuple[Controller, Controller]) -> None:
    agree(pair, mouse(0xF3, 200, 0xF3, 100, 0xF3, 80, 0xF2))
    agree(pair, mouse(0xF3, 200, 0xF3, 200, 0xF3, 80, 0xF2, 0xF0, 0xEB, 0xFF, 0xF2))


def test_random_commands(pair: tuple[Controller, Controller]) -> None:
    """Commands whose answers both document; each with its argument."""
    rng = random.Random(6)
    commands = [0x20, 0xA7, 0xA8, 0xA9, 0xAA, 0xAB, 0xAD, 0xAE, 0xD0]
    steps = []
    for _ in range(60):
        if rng.random() < 0.5:
            steps.append((0x64, rng.choice(commands)))
        elif rng.random() < 0.5:
            steps += [(0x64, 0x60), (0x60, rng.randrange(256) & 0x77)]
        else:
            steps += [(0x60, 0xED), (0x60, rng.randrange(8))]
    agree(pair, talk(*steps))


@pytest.mark.parametrize("codes", [1, 2, 3])
def test_codes_of_every_key(pair: tuple[Controller, Controller], codes: int) -> None:
    names = [name for name in KEYS if codes < 3 or KEYS[name].set3]

    def program(controller: Controller) -> dict[str, object]:
        for port, value in ((0x64, 0x60), (0x60, 0x07), (0x60, 0xF0), (0x60, codes), (0x60, 0xF4)):
            controller.outb(port, value)
        drain(controller)
        seen: dict[str, object] = {}
        for name in names:
            controller.key(name, True)
            made = drain(controller)
            controller.key(name, False)
            seen[name] = (made, drain(controller))
        return seen

    agree_on_each(pair, program)


def test_keys_translated(pair: tuple[Controller, Controller]) -> None:
    def program(controller: Controller) -> object:
        for port, value in ((0x64, 0x60), (0x60, 0x47), (0x60, 0xF4)):
            controller.outb(port, value)
        drain(controller)
        seen = []
        for name, down in [
            *(("a", True), ("a", False), ("up", True), ("up", False), ("ctrl_r", True), ("ctrl_r", False)),
            *(("f7", True), ("f7", False), ("print", True), ("print", False)),
            *(("ctrl", True), ("pause", True), ("pause", False), ("ctrl", False)),
        ]:
            controller.key(name, down)
            seen.append(drain(controller))
        return seen

    agree(pair, program)
