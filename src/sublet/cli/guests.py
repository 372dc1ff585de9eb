"""``sublet guests``."""

from __future__ import annotations

import json
from typing import Annotated

import click
from rich.console import Console
from rich.table import Table

from sublet.cli.parameters import Option


def guests(
    as_json: Annotated[bool, Option("--json", help="Print a JSON array for programs.")] = False,
) -> None:
    """List the guests that `sublet run` knows by name.

    A guest that is not cached yet is made from Debian's packages the first time it runs.
    """
    from sublet.guest import list_guests

    known = list_guests()
    if as_json:
        rows = [{"name": one.name, "description": one.description, "cached": one.cached} for one in known]
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table("guest", "what it is", "cached", box=None, pad_edge=False)
    for one in known:
        table.add_row(one.name, one.description, "yes" if one.cached else "no")
    Console().print(table)
