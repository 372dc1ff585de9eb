"""``sublet disk info``."""

from __future__ import annotations

from typing import Any

import click

from sublet.cli.disk.arguments import AsJson, File, Format
from sublet.cli.disk.output import describe, print_json
from sublet.units import format_size


def info(file: File, format: Format = None, as_json: AsJson = False) -> None:
    """Show what an image is: format, sizes, parent, snapshots. Also of a disk that is in use."""
    from sublet.block import open_image
    from sublet.block.hostfile import Lock

    with open_image(file, format=format, readonly=True, lock=Lock.NONE, parents=False) as image:
        facts = describe(image)
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        if value not in (None, [], {}, False):
            click.echo(f"{name.replace('_', ' ')}: {_text(name, value)}")


def _text(name: str, value: Any) -> str:
    if name in ("size", "file_size", "allocated", "cluster_size", "block_size"):
        return f"{format_size(value)} ({value} bytes)"
    if name == "snapshots":
        return ", ".join(str(one["name"]) for one in value)
    if name == "details":
        return ", ".join(f"{key} {item}" for key, item in value.items() if item not in (None, [], False))
    return "yes" if value is True else str(value)
