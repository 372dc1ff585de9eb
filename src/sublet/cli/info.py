"""``sublet info``."""

from __future__ import annotations

import json
import os
import platform
from typing import TYPE_CHECKING, Annotated, Any

import click
from rich.console import Console
from rich.table import Table

from sublet.cli.parameters import Option

if TYPE_CHECKING:
    from sublet.engine import EngineVerdict


def info(
    as_json: Annotated[bool, Option("--json", help="Print a JSON object for programs.")] = False,
) -> None:
    """Show what this host can run guests with.

    Each engine is probed, KVM by running a tiny guest under a time limit; the first usable one is
    what `--engine auto` takes.
    """
    from sublet.engine import probe_engines

    verdicts = probe_engines()
    if as_json:
        click.echo(json.dumps(_as_dict(verdicts), indent=2))
    else:
        _print(verdicts)


def _chosen(verdicts: list[EngineVerdict]) -> str | None:
    return next((verdict.name for verdict in verdicts if verdict.usable), None)


def _host() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "kernel": platform.release(),
    }


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return "unknown"


def _as_dict(verdicts: list[EngineVerdict]) -> dict[str, Any]:
    engines = [
        {"name": one.name, "usable": one.usable, "reason": one.reason, "remedy": one.remedy}
        for one in verdicts
    ]
    return {"host": _host(), "engines": engines, "auto": _chosen(verdicts)}


def _print(verdicts: list[EngineVerdict]) -> None:
    host = _host()
    console = Console()
    console.print(
        f"host: {host['cpu']}, {host['cpus']} CPUs, {host['memory_mib']} MiB, Linux {host['kernel']}"
    )
    table = Table("engine", "verdict", "reason", box=None, pad_edge=False)
    for one in verdicts:
        reason = f"{one.reason}. {one.remedy}" if one.remedy else one.reason
        table.add_row(one.name, "usable" if one.usable else "unusable", reason)
    console.print(table)
    console.print(f"--engine auto takes: {_chosen(verdicts) or 'none'}")
