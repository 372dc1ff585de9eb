"""``sublet disk resize``."""

from __future__ import annotations

from typing import Annotated

from sublet.cli.disk.arguments import Allow, AsJson, File, Format, read_size
from sublet.cli.disk.output import print_json
from sublet.cli.parameters import Argument, Option
from sublet.errors import UsageError
from sublet.units import format_size


def resize(
    file: File,
    size: Annotated[str, Argument(metavar="SIZE", help="As in 20G, +5G or, with --shrink, -5G.")],
    shrink: Annotated[bool, Option("--shrink", help="Allow that data at the end is lost.")] = False,
    format: Format = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Make a disk larger or smaller. What is on it does not know yet: grow its file system in the guest."""
    from sublet.block import open_image

    with open_image(file, format=format, folders=allow or ()) as image:
        before = image.size
        wanted = {"+": before, "-": before}.get(size[:1], 0)
        amount = read_size(size.lstrip("+-"))
        after = wanted - amount if size[:1] == "-" else wanted + amount
        if after < before and not shrink:
            raise UsageError(
                f"{format_size(after)} is less than the {format_size(before)} of {file}",
                remedy="Give --shrink if what is behind may be lost.",
            )
        image.resize(after)
        after = image.size
    if as_json:
        print_json({"file": str(file), "before": before, "size": after})
