"""``sublet disk map``."""

from __future__ import annotations

from typing import Any

import click

from sublet.cli.disk.arguments import Allow, AsJson, File, Format
from sublet.cli.disk.output import print_json


def map_(file: File, format: Format = None, allow: Allow = None, as_json: AsJson = False) -> None:
    """Show which parts of a disk are stored where, through its parents."""
    from sublet.block import open_image

    with open_image(file, format=format, readonly=True, folders=allow or ()) as image:
        rows = _merged(image)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        if row["data"]:
            place = "compressed" if row["compressed"] else f"{row['host_offset']:#x} of {row['file']}"
            click.echo(f"{row['offset']:#x} {row['size']:#x} {place}")


def _merged(image: Any) -> list[dict[str, Any]]:
    """``Image.extents`` with neighbours of one kind put together."""
    rows: list[dict[str, Any]] = []
    for extent in image.extents():
        row = {
            "offset": extent.offset,
            "size": extent.size,
            "depth": extent.depth,
            "present": extent.present,
            "data": extent.status.value == "data",
            "compressed": extent.compressed,
            "host_offset": extent.host_offset,
            "file": str(extent.file) if extent.file else None,
        }
        if rows and _continues(rows[-1], row):
            rows[-1]["size"] += row["size"]
        else:
            rows.append(row)
    return rows


def _continues(last: dict[str, Any], row: dict[str, Any]) -> bool:
    alike = all(last[key] == row[key] for key in ("depth", "present", "data", "compressed", "file"))
    if last["host_offset"] is None or row["host_offset"] is None:
        return alike and last["host_offset"] is row["host_offset"]
    return alike and last["host_offset"] + last["size"] == row["host_offset"]
