"""``sublet disk commit``."""

from __future__ import annotations

from typing import Annotated

from sublet.cli.disk.arguments import Allow, AsJson, File, Format
from sublet.cli.disk.output import print_json, shown
from sublet.cli.messages import ProgressDisplay, say
from sublet.cli.parameters import Option


def commit(
    file: File,
    keep: Annotated[bool, Option("--keep", help="Leave the overlay as it is.")] = False,
    format: Format = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Write what an overlay holds into its parent, and empty the overlay."""
    from sublet.block.operations import commit as run

    with ProgressDisplay() as progress:
        watch = shown(progress, f"committing {file.name}")
        parent = run(file, format=format, folders=allow or (), keep=keep, progress=watch)
    if as_json:
        print_json({"file": str(file), "parent": str(parent)})
    else:
        say(f"{file} is now part of {parent}")
