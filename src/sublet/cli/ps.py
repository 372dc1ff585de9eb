"""``sublet ps``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import click
from rich.console import Console
from rich.table import Table

from sublet.cli.parameters import Option
from sublet.errors import SubletError
from sublet.units import MIB, format_size


def ps(
    as_json: Annotated[bool, Option("--json", help="Print a JSON array for programs.")] = False,
) -> None:
    """List your machines that run now.

    The name is what `sublet screenshot`, `sublet type` and the other verbs for running machines take;
    `sublet run --name NAME` sets it.
    """
    from sublet.control import running

    rows = [_describe(machine.name) for machine in running()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table("name", "process", "engine", "vCPUs", "memory", box=None, pad_edge=False)
    for row in rows:
        memory = format_size(row["memory_mib"] * MIB) if row["memory_mib"] else ""
        table.add_row(row["name"], *(str(row[key] or "") for key in ("pid", "engine", "cpus")), memory)
    Console().print(table)


def _describe(name: str) -> dict[str, Any]:
    """What the machine says of itself; a machine that is being built or ending has only its name."""
    from sublet.control import call

    unknown = dict.fromkeys(("pid", "engine", "cpus", "memory_mib"))
    try:
        known = call(name, "machine.info")
    except SubletError:
        known = {}
    return {"name": name, **unknown, **known}
