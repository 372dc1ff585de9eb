"""``sublet disk rebase``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sublet.cli.disk.arguments import Allow, AsJson, File, Format
from sublet.cli.disk.output import print_json, shown
from sublet.cli.messages import ProgressDisplay
from sublet.cli.parameters import Option


def rebase(
    file: File,
    backing: Annotated[
        Path | None, Option("--backing", "-b", metavar="FILE", help="The new parent; none without.")
    ] = None,
    backing_format: Annotated[
        str | None, Option("--backing-format", "-F", help="Format of the new parent.")
    ] = None,
    unsafe: Annotated[
        bool, Option("--unsafe", "-u", help="Change the name alone, as after moving files.")
    ] = False,
    format: Format = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Give an overlay another parent, keeping what the disk holds."""
    from sublet.block.operations import rebase as run

    with ProgressDisplay() as progress:
        run(
            file,
            backing,
            backing_format=backing_format,
            format=format,
            folders=allow or (),
            unsafe=unsafe,
            progress=shown(progress, f"rebasing {file.name}"),
        )
    if as_json:
        print_json({"file": str(file), "backing": str(backing) if backing else None})
