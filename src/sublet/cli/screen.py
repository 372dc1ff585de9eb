"""``sublet screenshot`` and ``sublet type``."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Annotated, Final

import click

from sublet.cli.parameters import Argument, Option
from sublet.errors import HostRefused, UsageError

_LAYOUTS: Final = ("us",)


def screenshot(
    name: Annotated[str, Argument(help="Name of the machine (see `sublet ps`).")],
    file: Annotated[Path | None, Argument(help="PNG file to write; - is standard output.")] = None,
    text: Annotated[bool, Option("--text", help="Print the characters on the screen instead.")] = False,
) -> None:
    """Take a picture of a running machine's screen, in any mode.

    With --text, print what a text mode shows.
    """
    from sublet.control import call

    if text == (file is not None):
        raise UsageError("give either a file for the picture, or --text")
    if text:
        click.echo(call(name, "screen.text")["text"].rstrip("\n"))
        return
    assert file is not None, "or else --text was given"
    _write(file, base64.b64decode(call(name, "screen.png")["png"]))


def _write(file: Path, data: bytes) -> None:
    if str(file) == "-":
        sys.stdout.buffer.write(data)
        return
    try:
        file.write_bytes(data)
    except OSError as error:
        raise HostRefused(f"cannot write {file}: {error.strerror or error}") from error


def type_keys(
    name: Annotated[str, Argument(help="Name of the machine (see `sublet ps`).")],
    text: Annotated[
        str,
        Argument(help="Characters, and keys in braces: 'root{enter}', '{ctrl-alt-delete}', '{f2}'."),
    ],
    layout: Annotated[
        str, Option(help="Keyboard that the guest believes to have, for characters: us.")
    ] = "us",
) -> None:
    """Type on a running machine's keyboard, about 30 keys a second.

    Names in braces are keys wherever they are printed; docs/guide/screen.md lists them. `{{` and `}}`
    type the braces themselves.
    """
    from sublet.control import call

    if layout not in _LAYOUTS:
        raise UsageError(f"there is no keyboard layout {layout!r}", remedy=f"Known: {', '.join(_LAYOUTS)}.")
    call(name, "keyboard.type", text=text)
