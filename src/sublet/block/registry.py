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
SUFFIXES: Final = {
    ".raw": "raw",
    ".img": "raw",
    ".iso": "raw",
    ".bin": "raw",
    ".dd": "raw",
    ".qcow2": "qcow2",
    ".qcow": "qcow2",
    ".q2": "qcow2",
    ".vdi": "vdi",
    ".vmdk": "vmdk",
    ".vhd": "vhd",
    ".vpc": "vhd",
    ".vhdx": "vhdx",
    ".avhd": "vhd",
    ".avhdx": "vhdx",
}
"""Endings of names, lower-case, and what they say; here, so that nothing else is imported to ask."""
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
    return SUFFIXES.get(path.suffix.lower())


def probe(file: HostFile) -> str | None:
    """The format that a file's content looks like; None for raw."""
    names = (name for name in FORMATS if name != "raw")
    return next((name for name in names if looks_like(file, name)), None)


def looks_like(file: HostFile, name: str) -> bool:
    """Whether a file's content is of that format."""
    size = file.size()
    head = file.read(0, min(size, HEAD_SIZE))
    tail_size = min(size, TAIL_SIZE)
    tail = file.read(size - tail_size, tail_size)
    return find_format(name).probe(head, tail, size)


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
    if file.path.suffix.lower() == ".raw":
        return find_format("raw")
    if named is not None and named != "raw" and looks_like(file, named):
        return find_format(named)
    found = probe(file)
    if named in (None, "raw"):
        if found is None:
            return find_format("raw")
        raise UsageError(
            f"{file.path} looks like a {found} image, but its name does not say so",
            remedy=f"Say which it is: format={found}, or format=raw if a guest may have written that.",
        )
    raise ImageError(
        f"{file.path} is no {named} image, though its name says so",
        remedy=f"Say what it is: format={found or 'raw'}.",
    )
