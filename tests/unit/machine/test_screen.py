"""Looking at a machine and typing, as other commands do."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.judges.vga.adapters import OurVga
from tests.judges.vga.modes import MODE_13, TEXT_80X25, set_mode

from sublet.control import Operations
from sublet.devices.legacy import I8042
from sublet.errors import UsageError, WrongMoment
from sublet.machine.png import encode_png
from sublet.machine.screen import Screen
from sublet.testing import FakeGuestMemory, RecordingIrqLine


class Caller:
    """A client that stays."""

    def progress(self, done: int, total: int) -> None:
        """Nobody looks."""

    def cancelled(self) -> bool:
        return False


def machine() -> tuple[OurVga, Operations]:
    ours, operations = OurVga(), Operations()
    keys = I8042(RecordingIrqLine(), RecordingIrqLine(), bool, int)
    Screen(ours.vga, keys, FakeGuestMemory(0x1000)).add_operations(operations)
    return ours, operations


def test_a_picture() -> None:
    ours, operations = machine()
    set_mode(ours, MODE_13)
    answer = operations.find("screen.png")({}, Caller())
    png = base64.b64decode(answer["png"])
    assert png.startswith(b"\x89PNG")
    assert (answer["width"], answer["height"]) == (640, 400)


def test_the_text() -> None:
    ours, operations = machine()
    set_mode(ours, TEXT_80X25)
    for index, character in enumerate(b"login:"):
        ours.writeb(0xB8000 + 2 * index, character)
    answer = operations.find("screen.text")({}, Caller())
    assert answer["text"].splitlines()[0] == "login:"
    set_mode(ours, MODE_13)
    with pytest.raises(WrongMoment):
        operations.find("screen.text")({}, Caller())


def test_typing_nonsense_is_refused() -> None:
    _, operations = machine()
    for parameters in ({}, {"text": 5}, {"text": "{nokey}"}):
        with pytest.raises(UsageError):
            operations.find("keyboard.type")(parameters, Caller())


def test_others_read_our_png(tmp_path: Path) -> None:
    if shutil.which("pngtopnm") is None:
        pytest.skip("pngtopnm is not installed")
    rgb = bytes(range(7 * 5 * 3))
    (tmp_path / "x.png").write_bytes(encode_png(7, 5, rgb))
    command = ["pngtopnm", str(tmp_path / "x.png")]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    assert output == b"P6\n7 5\n255\n" + rgb
