"""The formats, by name; and which one a file is of.

A raw disk's content belongs to a guest, who can write any header into it. So content alone never decides: a
file is of the format that was asked for, or that its name's ending says. Where that leaves raw and the file
looks like something else, opening is refused until someone says which it is.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Final, cast

from sublet.block.format import HEAD_SIZE, TAIL_SIZE, ImageFormat
from sublet.block.hostfile import HostFile
from sublet.errors import ImageError, UsageError

FORMATS: Final = {
    "raw": "sublet.block.raw",
    "qcow2": "sublet.block.qcow2",
    "vdi": "sublet.block.vdi",
    "vmdk": "sublet.block.vmdk",
    "vhd": "sublet.block.vhd",
    "vhdx": "sublet.block.vhdx",
}
"""Names of formats, and the modules whose ``FORMAT`` implements them."""
ALIASES: Final = {"vpc": "vhd", "file": "raw"}
"""What other tools call them."""


@cache
def find_format(name: str) -> ImageFormat:
    """The format of that name.

    Raises:
        UsageError: There is none.
    """
    module = FORMATS.get(ALIASES.get(name, name))
    if module is None:
        raise UsageError(f"there is no disk format {name[:40]!r}", remedy=f"It can be: {', '.join(FORMATS)}.")
    return cast(ImageFormat, importlib.import_module(module).FORMAT)


def format_of_name(path: Path) -> str | None:
    """What the ending of a file's name says."""
    suffix = path.suffix.lower()
    return next((name for name in FORMATS if suffix in find_format(name).extensions), None)


def probe(file: HostFile) -> str | None:
    """The format that a file's content looks like; None for raw."""
    size = file.size()
    head = file.read(0, min(size, HEAD_SIZE))
    tail_size = min(size, TAIL_SIZE)
    tail = file.read(size - tail_size, tail_size)
    names = (name for name in FORMATS if name != "raw")
    return next((name for name in names if find_format(name).probe(head, tail, size)), None)


def choose_format(file: HostFile, asked: str | None) -> ImageFormat:
    """The format to open ``file`` as.

    Args:
        asked: What the user or the image above said, which is never doubted.

    Raises:
        UsageError: Nobody said, and the content looks like something other than raw.
        ImageError: The name says a format that the content is not of.
    """
    if asked is not None:
        return find_format(asked)
    named = format_of_name(file.path)
    if named == "raw" and file.path.suffix.lower() == ".raw":
        return find_format("raw")
    found = probe(file)
    if named in (None, "raw"):
        if found is not None:
            raise UsageError(
                f"{file.path} looks like a {found} image, but its name does not say so",
                remedy=f"Say which it is: format={found}, or format=raw if a guest may have written that.",
            )
        return find_format("raw")
    if found != named:
        raise ImageError(
            f"{file.path} is no {named} image, though its name says so",
            remedy=f"Say what it is: format={found or 'raw'}.",
        )
    return find_format(named)
