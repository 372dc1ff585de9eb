"""``sublet net``: the networks of running machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sublet.cli.messages import say
from sublet.errors import HostRefused, SubletError

net = typer.Typer(
    name="net", help="Look into and record the networks of running machines.", no_args_is_help=True
)

_Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="A machine; without it, all of them.")]
_Json = Annotated[bool, typer.Option("--json", help="Print a JSON array for programs.")]


@net.command(name="ls")
def list_cards(name: _Name = None, as_json: _Json = False) -> None:
    """List network cards: kind of network, address, link."""
    _show("net.ls", name, as_json)


@net.command(name="stats")
def stats(name: _Name = None, as_json: _Json = False) -> None:
    """Count packets and bytes sent and received, and packets dropped, by reason."""
    rows = _collect("net.stats", name)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    long = [
        {"machine": row["machine"], "nic": row["nic"], "counter": key, "value": f"{value:,}"}
        for row in rows
        for key, value in sorted(row.items())
        if key not in ("machine", "nic")
    ]
    _print(long)


@net.command(name="leases")
def leases(name: _Name = None, as_json: _Json = False) -> None:
    """List addresses that were given out."""
    _show("net.inspect", name, as_json, what="leases")


@net.command(name="flows")
def flows(name: _Name = None, as_json: _Json = False) -> None:
    """List connections through NAT."""
    _show("net.inspect", name, as_json, what="flows")


@net.command(name="denials")
def denials(name: _Name = None, as_json: _Json = False) -> None:
    """List what a policy refused lately."""
    _show("net.inspect", name, as_json, what="denials")


@net.command(name="link")
def link(
    name: Annotated[str, typer.Argument(help="A machine.")],
    state: Annotated[str, typer.Argument(metavar="up|down", help="Plug the cable in, or pull it out.")],
    nic: Annotated[str | None, typer.Option(help="Network card; without it, the first.")] = None,
) -> None:
    """Plug in or pull out a network card's cable."""
    from sublet.control import call
    from sublet.errors import UsageError

    if state not in ("up", "down"):
        raise UsageError(f"a link is up or down, not {state!r}")
    call(name, "net.link", nic=nic, up=state == "up")


@net.command(name="capture")
def capture(
    name: Annotated[str, typer.Argument(help="A machine.")],
    out: Annotated[Path, typer.Option(help="File to write, in pcapng, which Wireshark and tshark read.")],
    nic: Annotated[
        list[str] | None, typer.Option(help="Network card, such as net0; without it, all.")
    ] = None,
    filter_text: Annotated[
        str, typer.Option("--filter", metavar="FILTER", help='Which packets, as in "port 53" or "not arp".')
    ] = "",
    count: Annotated[int, typer.Option(metavar="N", min=0, help="End after N packets.")] = 0,
    seconds: Annotated[float, typer.Option(metavar="S", min=0, help="End after S seconds.")] = 0.0,
    snap_length: Annotated[
        int, typer.Option(metavar="BYTES", min=64, help="Keep so much of each packet.")
    ] = 262144,
) -> None:
    """Record packets while the machine runs, until Ctrl-C.

    Packets that are dropped on the way are recorded too, with the reason as their comment. The file is
    complete at any moment and can be looked at while it grows.
    """
    from sublet.control import call, running

    say(f"recording to {out}; Ctrl-C ends it")
    try:
        result = call(
            name,
            "net.capture",
            path=str(out.absolute()),
            nics=nic or [],
            filter=filter_text,
            count=count,
            seconds=seconds,
            snap_length=snap_length,
        )
    except KeyboardInterrupt:
        say(f"recorded to {out}")
        return
    except HostRefused:
        if name in (machine.name for machine in running()):
            raise
        say(f"{name} ended; recorded to {out}")
        return
    say(f"recorded {result['recorded']} packets to {out}, missed {result['missed']}")


def _show(operation: str, name: str | None, as_json: bool, **parameters: Any) -> None:
    rows = _collect(operation, name, **parameters)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _print(rows)


def _collect(operation: str, name: str | None, **parameters: Any) -> list[dict[str, Any]]:
    """The rows of one machine or of all; of all, those that are just ending have none."""
    from sublet.control import call, running

    if name is not None:
        return [{"machine": name, **row} for row in call(name, operation, **parameters)]
    rows: list[dict[str, Any]] = []
    for machine in running():
        try:
            rows += [{"machine": machine.name, **row} for row in call(machine.name, operation, **parameters)]
        except SubletError:
            continue
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*("" if row.get(key) is None else str(row.get(key)) for key in columns))
    Console().print(table)
