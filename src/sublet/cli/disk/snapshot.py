"""``sublet disk snapshot``."""

from __future__ import annotations

from typing import Annotated, Any

import click

from sublet.cli.disk.arguments import Allow, AsJson, File, Format
from sublet.cli.disk.output import print_json
from sublet.cli.parameters import Argument, Option
from sublet.errors import UsageError
from sublet.units import format_size


def snapshot(
    file: File,
    name: Annotated[str | None, Argument(metavar="[NAME]", help="Take one of this name.")] = None,
    revert: Annotated[str | None, Option(metavar="NAME", help="Make the disk what it was then.")] = None,
    delete: Annotated[str | None, Option(metavar="NAME", help="Forget it.")] = None,
    format: Format = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Take, revert to, delete or list the snapshots inside an image."""
    from sublet.block import open_image
    from sublet.block.hostfile import Lock

    if sum(wish is not None for wish in (name, revert, delete)) > 1:
        raise UsageError("give one of NAME, --revert and --delete")
    looking = name is None and revert is None and delete is None
    lock = Lock.NONE if looking else None
    with open_image(
        file, format=format, readonly=looking, lock=lock, parents=False, folders=allow or ()
    ) as image:
        if name is not None:
            image.create_snapshot(name)
        elif revert is not None:
            image.revert_snapshot(revert)
        elif delete is not None:
            image.delete_snapshot(delete)
        snapshots = [vars(one) for one in image.snapshots()]
    if as_json:
        print_json(snapshots)
    elif looking:
        _print_snapshots(snapshots)


def _print_snapshots(snapshots: list[dict[str, Any]]) -> None:
    import datetime

    for one in snapshots:
        when = datetime.datetime.fromtimestamp(one["created"], datetime.UTC).isoformat(timespec="seconds")
        click.echo(f"{one['id']}\t{one['name']}\t{when}\t{format_size(one['size'])}")
