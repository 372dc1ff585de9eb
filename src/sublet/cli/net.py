"""``sublet net``: the networks of running machines."""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path
from typing import Annotated, Any

import click
from rich.console import Console
from rich.table import Table

from sublet.cli.messages import say
from sublet.cli.parameters import Argument, Option
from sublet.cli.verbs import Group
from sublet.errors import HostRefused, SubletError

net = Group(
    name="net",
    help="Look into and record the networks of running machines.",
    verbs={
        "ls": "sublet.cli.net:list_cards",
        "stats": "sublet.cli.net:stats",
        "leases": "sublet.cli.net:leases",
        "flows": "sublet.cli.net:flows",
        "denials": "sublet.cli.net:denials",
        "link": "sublet.cli.net:link",
        "capture": "sublet.cli.net:capture",
        "setup": "sublet.cli.net:setup",
    },
)

_Name = Annotated[str | None, Argument(metavar="[NAME]", help="A machine; without it, all of them.")]
_Json = Annotated[bool, Option("--json", help="Print a JSON array for programs.")]


def list_cards(name: _Name = None, as_json: _Json = False) -> None:
    """List network cards: kind of network, address, link."""
    _show("net.ls", name, as_json)


def stats(name: _Name = None, as_json: _Json = False) -> None:
    """Count packets and bytes sent and received, and packets dropped, by reason."""
    rows = _collect("net.stats", name)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    long = [
        {"machine": row["machine"], "nic": row["nic"], "counter": key, "value": f"{value:,}"}
        for row in rows
        for key, value in sorted(row.items())
        if key not in ("machine", "nic")
    ]
    _print(long)


def leases(name: _Name = None, as_json: _Json = False) -> None:
    """List addresses that were given out."""
    _show("net.inspect", name, as_json, what="leases")


def flows(name: _Name = None, as_json: _Json = False) -> None:
    """List connections through NAT."""
    _show("net.inspect", name, as_json, what="flows")


def denials(name: _Name = None, as_json: _Json = False) -> None:
    """List what a policy refused lately."""
    _show("net.inspect", name, as_json, what="denials")


def link(
    name: Annotated[str, Argument(help="A machine.")],
    state: Annotated[str, Argument(metavar="up|down", help="Plug the cable in, or pull it out.")],
    nic: Annotated[str | None, Option(help="Network card; without it, the first.")] = None,
) -> None:
    """Plug in or pull out a network card's cable."""
    from sublet.control import call
    from sublet.errors import UsageError

    if state not in ("up", "down"):
        raise UsageError(f"a link is up or down, not {state!r}")
    call(name, "net.link", nic=nic, up=state == "up")


def capture(
    name: Annotated[str, Argument(help="A machine.")],
    out: Annotated[Path, Option(help="File to write, in pcapng, which Wireshark and tshark read.")],
    nic: Annotated[list[str] | None, Option(help="Network card, such as net0; without it, all.")] = None,
    filter_text: Annotated[
        str, Option("--filter", metavar="FILTER", help='Which packets, as in "port 53" or "not arp".')
    ] = "",
    count: Annotated[int, Option(metavar="N", minimum=0, help="End after N packets.")] = 0,
    seconds: Annotated[float, Option(metavar="S", minimum=0, help="End after S seconds.")] = 0.0,
    snap_length: Annotated[
        int, Option(metavar="BYTES", minimum=64, help="Keep so much of each packet.")
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


def setup(
    device: Annotated[str, Argument(help="Name of the device to make, such as tap0.")],
    user: Annotated[str | None, Option(help="Whose it is to be; without it, who called sudo.")] = None,
    bridge: Annotated[
        str | None, Option(help="Plug it into this bridge, so that machines are on its LAN.")
    ] = None,
    address: Annotated[
        str, Option(help="Without --bridge: this host's address on a network of the device's own.")
    ] = "192.168.88.1/24",
    queues: Annotated[int, Option(minimum=1, maximum=8, help="Queues; the machine asks for as many.")] = 1,
    undo: Annotated[bool, Option("--undo", help="Remove the device again.")] = False,
) -> None:
    """Give a user without privileges a device on a network of this host. For root, once.

    The user then runs `sublet run ... --net tap,interface=DEVICE`.
    """
    from sublet.net.tap.setup import Plan, remove_device, set_up_device

    if undo:
        done = remove_device(device) or [f"there is no {device}"]
    else:
        plan = Plan(device, _owner(user), bridge, _interface_address(address), queues)
        done = set_up_device(plan)
        asked = f",queues={queues}" if queues > 1 else ""
        done.append(f"{plan.user} runs: sublet run ... --net tap,interface={device}{asked}")
        done.append(f"to undo it: sublet net setup {device} --undo")
    for sentence in done:
        click.echo(sentence)


def _owner(user: str | None) -> str:
    from sublet.errors import UsageError

    name = user or os.environ.get("SUDO_USER")
    if not name:
        raise UsageError("nobody is named who is to have the device", remedy="Give --user NAME.")
    return name


def _interface_address(text: str) -> ipaddress.IPv4Interface:
    from sublet.errors import UsageError

    try:
        address = ipaddress.IPv4Interface(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no address", remedy="Give one such as 192.168.88.1/24.") from error
    if not 8 <= address.network.prefixlen <= 29:
        raise UsageError(f"{text!r} is no host in a network of 8 to 29 bits")
    return address


def _show(operation: str, name: str | None, as_json: bool, **parameters: Any) -> None:
    rows = _collect(operation, name, **parameters)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
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
