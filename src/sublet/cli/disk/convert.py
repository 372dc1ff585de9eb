"""``sublet disk convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sublet.cli.disk.arguments import Allow, AsJson, Format, Options, read_options
from sublet.cli.disk.output import print_json, shown
from sublet.cli.disk_option import format_of
from sublet.cli.messages import ProgressDisplay
from sublet.cli.parameters import Argument, Option


def convert(
    source: Annotated[Path, Argument(metavar="SOURCE", help="The image to read.")],
    target: Annotated[Path, Argument(metavar="TARGET", help="The image to create.")],
    format: Format = None,
    to: Annotated[
        str | None, Option("--to", "-O", metavar="FORMAT", help="By default what TARGET's name says.")
    ] = None,
    option: Options = None,
    compress: Annotated[bool, Option("--compress", "-c", help="Compress, where TO can.")] = False,
    force: Annotated[bool, Option("--force", help="Replace TARGET if it exists.")] = False,
    sync: Annotated[bool, Option("--sync/--no-sync", help="Wait until TARGET is on stable storage.")] = True,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Write what an image and its parents hold into a new image. Nothing is left of it on failure."""
    from sublet.block import open_image
    from sublet.block.hostfile import OsFiles
    from sublet.block.operations import convert as run

    with open_image(source, format=format, readonly=True, folders=allow or ()) as image:
        with ProgressDisplay() as progress:
            run(
                image,
                target,
                format=to or format_of(target),
                options=read_options(option),
                compress=compress,
                replace=force,
                files=None if sync else OsFiles(sync=False),
                progress=shown(progress, f"converting {source.name}"),
            )
        facts = {"source": str(source), "target": str(target), "size": image.size}
    if as_json:
        print_json(facts)
