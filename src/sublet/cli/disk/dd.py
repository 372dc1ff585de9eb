"""``sublet disk dd``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sublet.cli.disk.arguments import Allow, AsJson, Format, read_size
from sublet.cli.disk.output import print_json, shown
from sublet.cli.messages import ProgressDisplay
from sublet.cli.parameters import Argument, Option
from sublet.errors import UsageError


def dd(
    source: Annotated[Path, Argument(metavar="SOURCE")],
    target: Annotated[Path, Argument(metavar="TARGET")],
    block_size: Annotated[str, Option("--bs", help="Unit of the next three.")] = "1M",
    count: Annotated[int | None, Option(minimum=0, help="Blocks to copy; by default all.")] = None,
    skip: Annotated[int, Option(minimum=0, help="Blocks to skip in SOURCE.")] = 0,
    seek: Annotated[int, Option(minimum=0, help="Blocks to skip in TARGET.")] = 0,
    format: Format = None,
    target_format: Annotated[str | None, Option("--target-format", "-F")] = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Copy a range of one disk into another that exists."""
    from sublet.block import open_image
    from sublet.block.operations import copy_range

    unit = read_size(block_size)
    folders = allow or ()
    with open_image(source, format=format, readonly=True, folders=folders) as one:
        with open_image(target, format=target_format, folders=folders) as other:
            start, place = skip * unit, seek * unit
            room = max(0, min(one.size - start, other.size - place))
            size = max(0, one.size - start) if count is None else count * unit
            if size > room:
                raise UsageError(f"{size} bytes do not fit: {room} bytes are there to copy")
            with ProgressDisplay() as progress:
                copy_range(one, start, other, place, size, progress=shown(progress, "copying"))
    if as_json:
        print_json({"copied": size})
