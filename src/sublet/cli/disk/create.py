"""``sublet disk create``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from sublet.cli.disk.arguments import Allow, AsJson, File, Options, read_options, read_size
from sublet.cli.disk.output import describe, print_json
from sublet.cli.disk_option import format_of
from sublet.cli.messages import say
from sublet.cli.parameters import Argument, Option


def create(
    file: File,
    size: Annotated[
        str | None, Argument(metavar="[SIZE]", help="As in 20G; by default the parent's.")
    ] = None,
    format: Annotated[str | None, Option("--format", "-f", help="By default what the name says.")] = None,
    backing: Annotated[
        Path | None, Option("--backing", "-b", metavar="FILE", help="Make an overlay on this image.")
    ] = None,
    backing_format: Annotated[
        str | None, Option("--backing-format", "-F", help="Format of the parent.")
    ] = None,
    option: Options = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Create an image that reads as zeroes, or as its parent."""
    from sublet.block import create_image, open_image

    create_image(
        file,
        None if size is None else read_size(size),
        format=format or format_of(file),
        options=read_options(option),
        backing=backing,
        backing_format=backing_format,
        folders=allow or (),
    )
    if as_json:
        with open_image(file, format=format, readonly=True, parents=False) as image:
            print_json(describe(image))
    else:
        say(f"created {file}")
