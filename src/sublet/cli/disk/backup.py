"""``sublet disk backup``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sublet.cli.disk.arguments import Allow, AsJson, File
from sublet.cli.disk.bitmap import open_qcow2
from sublet.cli.disk.output import print_json, shown
from sublet.cli.messages import ProgressDisplay, say
from sublet.cli.parameters import Argument, Option
from sublet.units import format_size


def backup(
    file: File,
    target: Annotated[Path, Argument(metavar="TARGET", help="The increment to create.")],
    bitmap: Annotated[str, Option(metavar="NAME", help="The dirty bitmap to go by.")],
    previous: Annotated[Path, Option(metavar="FILE", help="The backup before this one.")],
    previous_format: Annotated[str | None, Option(help="Its format.")] = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Write what changed since the last backup into an overlay on it, and begin the bitmap anew.

    The first backup is a full one: `sublet disk bitmap FILE --add NAME`, then `sublet disk convert`.
    """
    from sublet.block.operations import back_up_increment

    with open_qcow2(file, folders=allow or ()) as image, ProgressDisplay() as progress:
        size = back_up_increment(
            image,
            target,
            bitmap=bitmap,
            previous=previous,
            previous_format=previous_format,
            progress=shown(progress, f"backing up {file.name}"),
        )
    if as_json:
        print_json({"file": str(file), "target": str(target), "size": size})
    else:
        say(f"{format_size(size)} had changed")
