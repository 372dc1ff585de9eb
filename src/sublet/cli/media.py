"""``sublet media``: CDs and floppy disks of running machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import click
from rich.console import Console
from rich.table import Table

from sublet.cli.parameters import Argument, Option
from sublet.cli.verbs import Group

media = Group(
    name="media",
    help="Change the CDs and floppy disks of running machines.",
    verbs={
        "list": "sublet.cli.media:list_media",
        "insert": "sublet.cli.media:insert",
        "eject": "sublet.cli.media:eject",
    },
)

_Name = Annotated[str, Argument(help="Name of the machine (see `sublet ps`).")]
_Drive = Annotated[str, Argument(help="cdrom0, cdrom1, ..., floppy0, floppy1.")]
_Force = Annotated[bool, Option("--force", help="Also where the guest has locked the drive.")]


def list_media(
    name: _Name, as_json: Annotated[bool, Option("--json", help="Print a JSON array.")] = False
) -> None:
    """List a machine's drives for CDs and floppy disks, and what lies in them."""
    from sublet.control import call

    rows = call(name, "media.list")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table("drive", "file", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["drive"], row["file"] or "(empty)")
    Console().print(table)


def insert(
    name: _Name,
    drive: _Drive,
    file: Annotated[Path, Argument(help="Image of the CD or floppy disk.")],
    force: _Force = False,
) -> None:
    """Put a CD or floppy disk in, in place of what is there; the guest is told of it as of a real one."""
    from sublet.control import call

    call(name, "media.insert", drive=drive, file=str(file.absolute()), force=force)


def eject(name: _Name, drive: _Drive, force: _Force = False) -> None:
    """Take a CD or floppy disk out."""
    from sublet.control import call

    call(name, "media.eject", drive=drive, force=force)
