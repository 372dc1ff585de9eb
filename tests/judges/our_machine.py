"""A machine of ours with a screen and a keyboard, for judges that hold it against QEMU's."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Sequence

from tests.integration.guest import Guest

from sublet.control import call
from sublet.devices.vga import Picture
from sublet.errors import SubletError


class OurMachine:
    """``sublet run`` under a name. The caller sets XDG_RUNTIME_DIR, and needs netpbm. `close` it."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self._name = name
        self.guest = Guest(["--engine", "translate", "--name", name, *arguments])

    def picture(self) -> Picture | None:
        """What is on the screen; None while the machine is being built."""
        try:
            answer = call(self._name, "screen.png")
        except SubletError:
            return None
        png = base64.b64decode(answer["png"])
        ppm = subprocess.run(["pngtopnm"], input=png, capture_output=True, check=True).stdout
        return Picture(answer["width"], answer["height"], ppm.split(b"\n", 3)[3])

    def type(self, text: str) -> None:
        """Type on the keyboard, as ``sublet type`` does."""
        call(self._name, "keyboard.type", text=text)

    def report(self, problem: str) -> str:
        """A message for a failed test."""
        return self.guest.report(problem)

    def close(self) -> None:
        """End it."""
        self.guest.close()
