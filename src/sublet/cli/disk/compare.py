"""``sublet disk compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import click

from sublet.cli.disk.arguments import Allow, AsJson
from sublet.cli.disk.output import print_json, shown
from sublet.cli.messages import ProgressDisplay
from sublet.cli.parameters import Argument, Option

EPILOG: Final = "**Exit status**: 0 the same; 22 different; others as of every command."
EXIT_DIFFERENT: Final = 22
"""``compare`` found a difference."""


def compare(
    first: Annotated[Path, Argument(metavar="FIRST")],
    second: Annotated[Path, Argument(metavar="SECOND")],
    format: Annotated[str | None, Option("--format", "-f", help="Format of FIRST.")] = None,
    second_format: Annotated[str | None, Option("--second-format", "-F", help="Format of SECOND.")] = None,
    strict: Annotated[bool, Option("--strict", "-s", help="Sizes must be the same, too.")] = False,
    allow: Allow = None,
    as_json: AsJson = False,
) -> int:
    """Compare what two disks hold, whatever their formats."""
    from sublet.block import open_image
    from sublet.block.operations import compare as run

    folders = allow or ()
    with open_image(first, format=format, readonly=True, folders=folders) as one:
        with open_image(second, format=second_format, readonly=True, folders=folders) as other:
            with ProgressDisplay() as progress:
                difference = run(one, other, strict=strict, progress=shown(progress, "comparing"))
    if as_json:
        print_json({"same": difference is None, **(vars(difference) if difference else {})})
    elif difference is None:
        click.echo("the disks hold the same")
    else:
        click.echo(f"{difference.reason}, first at byte {difference.offset}")
    return EXIT_DIFFERENT if difference else 0
