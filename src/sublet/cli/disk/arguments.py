"""What several verbs of ``sublet disk`` take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sublet.cli.parameters import Argument, Option
from sublet.errors import UsageError
from sublet.units import parse_size

File = Annotated[Path, Argument(metavar="FILE", help="The disk image.")]
Format = Annotated[
    str | None,
    Option("--format", "-f", help="Format of FILE; by default what its name says."),
]
Allow = Annotated[
    list[Path] | None,
    Option("--allow", metavar="FOLDER", help="A folder that parents may be in, besides FILE's own."),
]
AsJson = Annotated[bool, Option("--json", help="Print JSON for programs.")]
Options = Annotated[
    list[str] | None,
    Option("-o", "--option", metavar="NAME=VALUE", help="An option of the new image's format."),
]


def read_size(text: str) -> int:
    """Bytes of a size as people write it, rounded up to whole sectors.

    Raises:
        UsageError: It is none.
    """
    try:
        size = parse_size(f"{text}B" if text.isdecimal() and len(text) > 6 else text)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return -(-size // 512) * 512


def read_options(pairs: list[str] | None) -> dict[str, str]:
    """What ``-o NAME=VALUE,NAME=VALUE`` says.

    Raises:
        UsageError: A part has no value.
    """
    values = {}
    for part in (part for pair in pairs or () for part in pair.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"{part!r} is no option: write NAME=VALUE")
        values[name] = value
    return values
