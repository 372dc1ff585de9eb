"""``sublet disk bitmap``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import click

from sublet.cli.disk.arguments import AsJson, File, read_size
from sublet.cli.disk.output import print_json
from sublet.cli.parameters import Option
from sublet.errors import UsageError
from sublet.units import format_size


def bitmap(
    file: File,
    add: Annotated[str | None, Option(metavar="NAME", help="Record writes from now on.")] = None,
    remove: Annotated[str | None, Option(metavar="NAME", help="Forget it.")] = None,
    clear: Annotated[str | None, Option(metavar="NAME", help="Begin anew.")] = None,
    granularity: Annotated[str, Option(metavar="SIZE", help="Bytes of the disk for a bit.")] = "64K",
    as_json: AsJson = False,
) -> None:
    """Add, remove, clear or list the dirty bitmaps of a QCOW2 image, for incremental backup."""
    if sum(wish is not None for wish in (add, remove, clear)) > 1:
        raise UsageError("give one of --add, --remove and --clear")
    looking = add is None and remove is None and clear is None
    with open_qcow2(file, readonly=looking) as image:
        if add is not None:
            image.add_bitmap(add, granularity=read_size(granularity))
        elif remove is not None:
            image.remove_bitmap(remove)
        elif clear is not None:
            image.clear_bitmap(clear)
        facts = [one.describe() for one in image.bitmaps.all]
    if as_json:
        print_json(facts)
    elif looking:
        for one in facts:
            click.echo(f"{one['name']}\t{format_size(one['granularity'])}\t{' '.join(one['flags'])}")


def open_qcow2(file: Path, *, readonly: bool = False, folders: Iterable[Path] = ()) -> Any:
    """Open an image that can have bitmaps.

    Raises:
        UsageError: It is none.
    """
    from sublet.block import open_image
    from sublet.block.hostfile import Lock
    from sublet.block.qcow2.image import Qcow2Image

    lock = Lock.NONE if readonly else None
    image = open_image(file, readonly=readonly, folders=folders, parents=not readonly, lock=lock)
    if not isinstance(image, Qcow2Image):
        image.close()
        raise UsageError(f"{file} is a {image.format} image: only qcow2 has bitmaps")
    return image
