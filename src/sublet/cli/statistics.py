"""How ``--stats`` prints the counters of a run."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Mapping


class StatisticsFormat(enum.StrEnum):
    """Values of ``--stats``."""

    TABLE = "table"
    JSON = "json"


def print_statistics(statistics: Mapping[str, int], style: StatisticsFormat) -> None:
    """Print counters, named ``group.counter``, on standard error: JSON is one line, the last."""
    if style is StatisticsFormat.JSON:
        print(json.dumps(dict(sorted(statistics.items()))), file=sys.stderr, flush=True)
        return
    # Machines without it do without the two megabytes.
    from rich.console import Console
    from rich.table import Table

    table = Table("group", "counter", "value", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    previous = ""
    for name, value in sorted(statistics.items()):
        group, _, counter = name.partition(".")
        table.add_row(group if group != previous else "", counter or group, f"{value:,}")
        previous = group
    Console(stderr=True).print(table)
