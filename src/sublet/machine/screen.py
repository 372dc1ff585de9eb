"""A machine's screen and keyboard, as its user and other commands reach them."""

from __future__ import annotations

import base64
from typing import Any

from sublet.control import Call, Operations
from sublet.devices.legacy import I8042
from sublet.devices.vga import Picture, TextScreen, Vga, render, text_screen
from sublet.errors import UsageError, WrongMoment
from sublet.hw import GuestMemory
from sublet.machine.key_text import parse_key_text
from sublet.machine.png import encode_png
from sublet.machine.typist import keys_ahead, type_chords


class Screen:
    """What is to be seen and touched. Any thread.

    Args:
        vga: The display adapter.
        keys: The keyboard.
        memory: Tells how far the BIOS is behind with the keys.
    """

    def __init__(self, vga: Vga, keys: I8042, memory: GuestMemory) -> None:
        self._vga = vga
        self._memory = memory
        self._closed = False
        self.keys = keys

    def text(self) -> TextScreen | None:
        """The characters on the screen; None while it shows graphics."""
        return text_screen(self._vga)

    def picture(self) -> Picture:
        """The pixels on the screen."""
        return render(self._vga)

    def close(self) -> None:
        """The machine is gone, off or reset: whoever types stops."""
        self._closed = True

    def add_operations(self, operations: Operations) -> None:
        """Let other commands look and type: ``screen.png``, ``screen.text``, ``keyboard.type``."""
        operations.add("screen.png", self._png)
        operations.add("screen.text", self._text)
        operations.add("keyboard.type", self._type)

    def _png(self, parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        """The picture; ``png`` is in base 64."""
        width, height, rgb = self.picture()
        png = base64.b64encode(encode_png(width, height, rgb)).decode()
        return {"width": width, "height": height, "png": png}

    def _text(self, parameters: dict[str, Any], call: Call) -> dict[str, Any]:
        screen = self.text()
        if screen is None:
            raise WrongMoment("the screen shows graphics, not text", remedy="Take it as a PNG.")
        size = {"columns": screen.columns, "rows": screen.rows}
        return size | {"text": screen.text(), "cursor": screen.cursor}

    def _type(self, parameters: dict[str, Any], call: Call) -> int:
        """Type ``text``; returns how many keys went down, those that go down together counted once."""
        text = parameters.get("text")
        if not isinstance(text, str):
            raise UsageError("keyboard.type needs a text")
        chords = parse_key_text(text)
        return type_chords(
            self.keys,
            chords,
            ahead=lambda: keys_ahead(self._memory),
            typed=lambda count: call.progress(count, len(chords)),
            cancelled=lambda: self._closed or call.cancelled(),
        )
