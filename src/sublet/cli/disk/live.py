"""``sublet disk live``: work on the disks of running machines, beside the guest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import click

from sublet.cli.disk_option import format_of
from sublet.cli.messages import ProgressDisplay, say
from sublet.cli.parameters import Argument, Option
from sublet.cli.verbs import Group
from sublet.errors import UsageError
from sublet.units import format_size, parse_size

live = Group(
    name="live",
    help="Work on the disks of running machines: snapshot, commit, stream, mirror, backup.",
    verbs={
        "list": "sublet.cli.disk.live:list_",
        "snapshot": "sublet.cli.disk.live:snapshot",
        "commit": "sublet.cli.disk.live:commit",
        "stream": "sublet.cli.disk.live:stream",
        "mirror": "sublet.cli.disk.live:mirror",
        "backup": "sublet.cli.disk.live:backup",
    },
)

Disk = Annotated[
    str,
    Argument(metavar="MACHINE:DISK", help="As in web:vda; `sublet disk live list web` says which."),
]
Target = Annotated[Path, Argument(metavar="TARGET", help="The image to create.")]
Rate = Annotated[
    str | None, Option("--rate", metavar="SIZE", help="Copy at most so many bytes a second, as in 50M.")
]
To = Annotated[str | None, Option("--to", "-O", metavar="FORMAT", help="By default what TARGET's name says.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON for programs.")]


def list_(machine: Annotated[str, Argument(metavar="MACHINE")], as_json: AsJson = False) -> None:
    """List a running machine's disks, and the images that hold them now."""
    from sublet.control.client import call

    disks = call(machine, "disk.list")
    if as_json:
        click.echo(json.dumps(disks, indent=2))
        return
    for one in disks:
        notes = [one["format"], format_size(one["size"])]
        notes += ["read-only"] if one["readonly"] else []
        notes += [one["job"]] if one["job"] else []
        click.echo(f"{one['disk']}\t{one['file']}\t{', '.join(notes)}")


def snapshot(disk: Disk, target: Target, as_json: AsJson = False) -> None:
    """Keep the disk as it is now: the guest goes on in a QCOW2 overlay, TARGET.

    The image below does not change any more, and can be copied. The disk is TARGET from now on: give
    that to the next `sublet run`.
    """
    _perform(disk, "snapshot", as_json, target=_absolute(target))


def commit(disk: Disk, rate: Rate = None, as_json: AsJson = False) -> None:
    """Write an overlay into its parent, and let the machine go on with the parent.

    The overlay is left empty. Ctrl-C stops it, and the machine stays on the overlay.
    """
    _perform(disk, "commit", as_json, rate=_rate(rate))


def stream(disk: Disk, rate: Rate = None, as_json: AsJson = False) -> None:
    """Copy what an overlay's parents hold into it, so that it needs none any more."""
    _perform(disk, "stream", as_json, rate=_rate(rate))


def mirror(
    disk: Disk,
    target: Target,
    to: To = None,
    pivot: Annotated[bool, Option("--pivot", help="Let the machine go on with TARGET.")] = False,
    rate: Rate = None,
    as_json: AsJson = False,
) -> None:
    """Copy the disk to another file, as it is when the copy is complete.

    TARGET appears when it is complete and on stable storage; on failure and on Ctrl-C nothing does.
    """
    _perform(
        disk,
        "mirror",
        as_json,
        target=_absolute(target),
        format=to or format_of(target),
        pivot=pivot,
        rate=_rate(rate),
    )


def backup(
    disk: Disk,
    target: Target,
    to: To = None,
    bitmap: Annotated[
        str | None,
        Option(metavar="NAME", help="Record changes from this moment on under a name (QCOW2 disks)."),
    ] = None,
    previous: Annotated[
        Path | None,
        Option(metavar="FILE", help="Write only what BITMAP recorded since this backup, on top of it."),
    ] = None,
    previous_format: Annotated[str | None, Option(help="Its format.")] = None,
    rate: Rate = None,
    as_json: AsJson = False,
) -> None:
    """Copy the disk to another file, as it is at this moment, while the guest goes on.

    A full backup first, then increments:

    - `sublet disk live backup web:vda mon.qcow2 --bitmap daily`
    - `sublet disk live backup web:vda tue.qcow2 --bitmap daily --previous mon.qcow2`
    """
    if previous is not None and bitmap is None:
        raise UsageError("--previous needs --bitmap: the name under which the changes were recorded")
    _perform(
        disk,
        "backup",
        as_json,
        target=_absolute(target),
        format=to or ("qcow2" if previous is not None else format_of(target)),
        bitmap=bitmap,
        previous=_absolute(previous) if previous is not None else None,
        previous_format=previous_format,
        rate=_rate(rate),
    )


def _perform(disk: str, verb: str, as_json: bool, **parameters: Any) -> None:
    from sublet.control.client import call

    machine, colon, name = disk.rpartition(":")
    if not colon or not machine or not name:
        raise UsageError(f"{disk!r} names no disk of a machine", remedy="Write MACHINE:DISK, as in web:vda.")
    with ProgressDisplay() as progress:
        shown = lambda done, total: progress(f"{verb} of {disk}", done, total)  # noqa: E731
        result = call(machine, f"disk.{verb}", on_progress=shown, disk=name, **parameters)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    copied = f"{format_size(result['copied'])} copied; " if "copied" in result else ""
    say(f"{copied}{disk} is {result['file']}")


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _rate(text: str | None) -> int:
    if text is None:
        return 0
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"--rate: {error}") from error
