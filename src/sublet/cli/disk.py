"""``sublet disk``: create, look at, convert and mend disk images."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from sublet.cli.disk_live import live
from sublet.cli.disk_mount import mount
from sublet.cli.disk_option import format_of
from sublet.cli.messages import ProgressDisplay, say
from sublet.errors import UsageError
from sublet.units import format_size, parse_size

EXIT_ERRORS: Final = 20
"""``check`` found errors that are not repaired."""
EXIT_LEAKS: Final = 21
"""``check`` found leaks alone that are not repaired."""
EXIT_DIFFERENT: Final = 22
"""``compare`` found a difference."""

disk = typer.Typer(
    name="disk",
    help="Create, inspect, convert, check and serve disk images: raw, qcow2, vdi, vmdk, vhd, vhdx.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

disk.add_typer(live)
disk.command()(mount)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The disk image.", show_default=False)]
Format = Annotated[
    str | None,
    typer.Option("--format", "-f", help="Format of FILE; by default what its name says.", show_default=False),
]
Allow = Annotated[
    list[Path] | None,
    typer.Option("--allow", metavar="FOLDER", help="A folder that parents may be in, besides FILE's own."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Options = Annotated[
    list[str] | None,
    typer.Option("-o", "--option", metavar="NAME=VALUE", help="An option of the new image's format."),
]


@disk.command()
def create(
    file: File,
    size: Annotated[
        str | None, typer.Argument(metavar="[SIZE]", help="As in 20G; by default the parent's.")
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", "-f", help="By default what the name says.")
    ] = None,
    backing: Annotated[
        Path | None, typer.Option("--backing", "-b", metavar="FILE", help="Make an overlay on this image.")
    ] = None,
    backing_format: Annotated[
        str | None, typer.Option("--backing-format", "-F", help="Format of the parent.")
    ] = None,
    option: Options = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Create an image that reads as zeroes, or as its parent."""
    from sublet.block import create_image, open_image

    create_image(
        file,
        None if size is None else _size(size),
        format=format or format_of(file),
        options=_options(option),
        backing=backing,
        backing_format=backing_format,
        folders=allow or (),
    )
    if as_json:
        with open_image(file, format=format, readonly=True, parents=False) as image:
            _print_json(_describe(image))
    else:
        say(f"created {file}")


@disk.command()
def info(file: File, format: Format = None, as_json: AsJson = False) -> None:
    """Show what an image is: format, sizes, parent, snapshots. Also of a disk that is in use."""
    from sublet.block import open_image
    from sublet.block.hostfile import Lock

    with open_image(file, format=format, readonly=True, lock=Lock.NONE, parents=False) as image:
        facts = _describe(image)
    if as_json:
        _print_json(facts)
        return
    for name, value in facts.items():
        if value not in (None, [], {}, False):
            typer.echo(f"{name.replace('_', ' ')}: {_text(name, value)}")


@disk.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The image to read.", show_default=False)],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="The image to create.", show_default=False)
    ],
    format: Format = None,
    to: Annotated[
        str | None, typer.Option("--to", "-O", metavar="FORMAT", help="By default what TARGET's name says.")
    ] = None,
    option: Options = None,
    compress: Annotated[bool, typer.Option("--compress", "-c", help="Compress, where TO can.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace TARGET if it exists.")] = False,
    sync: Annotated[
        bool, typer.Option("--sync/--no-sync", help="Wait until TARGET is on stable storage.")
    ] = True,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Write what an image and its parents hold into a new image. Nothing is left of it on failure."""
    from sublet.block import open_image
    from sublet.block.hostfile import OsFiles
    from sublet.block.operations import convert as run

    with open_image(source, format=format, readonly=True, folders=allow or ()) as image:
        with ProgressDisplay() as progress:
            run(
                image,
                target,
                format=to or format_of(target),
                options=_options(option),
                compress=compress,
                replace=force,
                files=None if sync else OsFiles(sync=False),
                progress=_shown(progress, f"converting {source.name}"),
            )
        facts = {"source": str(source), "target": str(target), "size": image.size}
    if as_json:
        _print_json(facts)


@disk.command(
    epilog="**Exit status**: 0 clean or repaired; 20 errors; 21 leaks alone; others as of every command."
)
def check(
    file: File,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended without loss.")] = False,
    format: Format = None,
    as_json: AsJson = False,
) -> int:
    """Look for damage in an image's own tables."""
    from sublet.block import open_image

    with open_image(file, format=format, readonly=not repair, check=True) as image:
        report = image.check(repair=repair)
    if as_json:
        _print_json({"file": str(file), "clean": report.clean, **vars(report)})
    else:
        for finding in report.findings:
            typer.echo(finding)
        repaired = report.errors_repaired + report.leaks_repaired
        typer.echo(f"{report.errors} errors, {report.leaks} leaks, {repaired} repaired")
    if report.errors > report.errors_repaired:
        return EXIT_ERRORS
    return EXIT_LEAKS if report.leaks > report.leaks_repaired else 0


@disk.command()
def snapshot(
    file: File,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Take one of this name.")] = None,
    revert: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make the disk what it was then.")
    ] = None,
    delete: Annotated[str | None, typer.Option(metavar="NAME", help="Forget it.")] = None,
    format: Format = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Take, revert to, delete or list the snapshots inside an image."""
    from sublet.block import open_image
    from sublet.block.hostfile import Lock

    if sum(wish is not None for wish in (name, revert, delete)) > 1:
        raise UsageError("give one of NAME, --revert and --delete")
    looking = name is None and revert is None and delete is None
    lock = Lock.NONE if looking else None
    with open_image(
        file, format=format, readonly=looking, lock=lock, parents=False, folders=allow or ()
    ) as image:
        if name is not None:
            image.create_snapshot(name)
        elif revert is not None:
            image.revert_snapshot(revert)
        elif delete is not None:
            image.delete_snapshot(delete)
        snapshots = [vars(one) for one in image.snapshots()]
    if as_json:
        _print_json(snapshots)
    elif looking:
        _print_snapshots(snapshots)


@disk.command()
def bitmap(
    file: File,
    add: Annotated[str | None, typer.Option(metavar="NAME", help="Record writes from now on.")] = None,
    remove: Annotated[str | None, typer.Option(metavar="NAME", help="Forget it.")] = None,
    clear: Annotated[str | None, typer.Option(metavar="NAME", help="Begin anew.")] = None,
    granularity: Annotated[str, typer.Option(metavar="SIZE", help="Bytes of the disk for a bit.")] = "64K",
    as_json: AsJson = False,
) -> None:
    """Add, remove, clear or list the dirty bitmaps of a QCOW2 image, for incremental backup."""
    if sum(wish is not None for wish in (add, remove, clear)) > 1:
        raise UsageError("give one of --add, --remove and --clear")
    looking = add is None and remove is None and clear is None
    with _open_qcow2(file, readonly=looking) as image:
        if add is not None:
            image.add_bitmap(add, granularity=_size(granularity))
        elif remove is not None:
            image.remove_bitmap(remove)
        elif clear is not None:
            image.clear_bitmap(clear)
        facts = [one.describe() for one in image.bitmaps.all]
    if as_json:
        _print_json(facts)
    elif looking:
        for one in facts:
            typer.echo(f"{one['name']}\t{format_size(one['granularity'])}\t{' '.join(one['flags'])}")


@disk.command()
def backup(
    file: File,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The increment to create.")],
    bitmap: Annotated[str, typer.Option(metavar="NAME", help="The dirty bitmap to go by.")],
    previous: Annotated[Path, typer.Option(metavar="FILE", help="The backup before this one.")],
    previous_format: Annotated[str | None, typer.Option(help="Its format.")] = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Write what changed since the last backup into an overlay on it, and begin the bitmap anew.

    The first backup is a full one: `sublet disk bitmap FILE --add NAME`, then `sublet disk convert`.
    """
    from sublet.block.operations import back_up_increment

    with _open_qcow2(file, folders=allow or ()) as image, ProgressDisplay() as progress:
        size = back_up_increment(
            image,
            target,
            bitmap=bitmap,
            previous=previous,
            previous_format=previous_format,
            progress=_shown(progress, f"backing up {file.name}"),
        )
    if as_json:
        _print_json({"file": str(file), "target": str(target), "size": size})
    else:
        say(f"{format_size(size)} had changed")


def _open_qcow2(file: Path, *, readonly: bool = False, folders: Iterable[Path] = ()) -> Any:
    """Open an image that can have bitmaps."""
    from sublet.block import open_image
    from sublet.block.hostfile import Lock
    from sublet.block.qcow2.image import Qcow2Image

    lock = Lock.NONE if readonly else None
    image = open_image(file, readonly=readonly, folders=folders, parents=not readonly, lock=lock)
    if not isinstance(image, Qcow2Image):
        image.close()
        raise UsageError(f"{file} is a {image.format} image: only qcow2 has bitmaps")
    return image


@disk.command()
def resize(
    file: File,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="As in 20G, +5G or, with --shrink, -5G.")],
    shrink: Annotated[bool, typer.Option("--shrink", help="Allow that data at the end is lost.")] = False,
    format: Format = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Make a disk larger or smaller. What is on it does not know yet: grow its file system in the guest."""
    from sublet.block import open_image

    with open_image(file, format=format, folders=allow or ()) as image:
        before = image.size
        wanted = {"+": before, "-": before}.get(size[:1], 0)
        amount = _size(size.lstrip("+-"))
        after = wanted - amount if size[:1] == "-" else wanted + amount
        if after < before and not shrink:
            raise UsageError(
                f"{format_size(after)} is less than the {format_size(before)} of {file}",
                remedy="Give --shrink if what is behind may be lost.",
            )
        image.resize(after)
        after = image.size
    if as_json:
        _print_json({"file": str(file), "before": before, "size": after})


@disk.command()
def compact(file: File, format: Format = None, allow: Allow = None, as_json: AsJson = False) -> None:
    """Give storage back that holds nothing but zeroes, in place."""
    from sublet.block import open_image
    from sublet.block.operations import compact as run

    with open_image(file, format=format, folders=allow or ()) as image, ProgressDisplay() as progress:
        freed = run(image, progress=_shown(progress, f"compacting {file.name}"))
    if as_json:
        _print_json({"file": str(file), "freed": freed})
    else:
        say(f"{format_size(freed)} given back")


@disk.command()
def commit(
    file: File,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the overlay as it is.")] = False,
    format: Format = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Write what an overlay holds into its parent, and empty the overlay."""
    from sublet.block.operations import commit as run

    with ProgressDisplay() as progress:
        shown = _shown(progress, f"committing {file.name}")
        parent = run(file, format=format, folders=allow or (), keep=keep, progress=shown)
    if as_json:
        _print_json({"file": str(file), "parent": str(parent)})
    else:
        say(f"{file} is now part of {parent}")


@disk.command()
def rebase(
    file: File,
    backing: Annotated[
        Path | None, typer.Option("--backing", "-b", metavar="FILE", help="The new parent; none without.")
    ] = None,
    backing_format: Annotated[
        str | None, typer.Option("--backing-format", "-F", help="Format of the new parent.")
    ] = None,
    unsafe: Annotated[
        bool, typer.Option("--unsafe", "-u", help="Change the name alone, as after moving files.")
    ] = False,
    format: Format = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Give an overlay another parent, keeping what the disk holds."""
    from sublet.block.operations import rebase as run

    with ProgressDisplay() as progress:
        run(
            file,
            backing,
            backing_format=backing_format,
            format=format,
            folders=allow or (),
            unsafe=unsafe,
            progress=_shown(progress, f"rebasing {file.name}"),
        )
    if as_json:
        _print_json({"file": str(file), "backing": str(backing) if backing else None})


@disk.command(epilog="**Exit status**: 0 the same; 22 different; others as of every command.")
def compare(
    first: Annotated[Path, typer.Argument(metavar="FIRST", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="SECOND", show_default=False)],
    format: Annotated[str | None, typer.Option("--format", "-f", help="Format of FIRST.")] = None,
    second_format: Annotated[
        str | None, typer.Option("--second-format", "-F", help="Format of SECOND.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", "-s", help="Sizes must be the same, too.")] = False,
    allow: Allow = None,
    as_json: AsJson = False,
) -> int:
    """Compare what two disks hold, whatever their formats."""
    from sublet.block import open_image
    from sublet.block.operations import compare as run

    folders = allow or ()
    with open_image(first, format=format, readonly=True, folders=folders) as one:
        with open_image(second, format=second_format, readonly=True, folders=folders) as other:
            with ProgressDisplay() as progress:
                shown = _shown(progress, "comparing")
                difference = run(one, other, strict=strict, progress=shown)
    if as_json:
        _print_json({"same": difference is None, **(vars(difference) if difference else {})})
    elif difference is None:
        typer.echo("the disks hold the same")
    else:
        typer.echo(f"{difference.reason}, first at byte {difference.offset}")
    return EXIT_DIFFERENT if difference else 0


@disk.command("map")
def map_(file: File, format: Format = None, allow: Allow = None, as_json: AsJson = False) -> None:
    """Show which parts of a disk are stored where, through its parents."""
    from sublet.block import open_image

    with open_image(file, format=format, readonly=True, folders=allow or ()) as image:
        rows = _merged(image)
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        if row["data"]:
            place = "compressed" if row["compressed"] else f"{row['host_offset']:#x} of {row['file']}"
            typer.echo(f"{row['offset']:#x} {row['size']:#x} {place}")


@disk.command()
def dd(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="TARGET", show_default=False)],
    block_size: Annotated[str, typer.Option("--bs", help="Unit of the next three.")] = "1M",
    count: Annotated[int | None, typer.Option(min=0, help="Blocks to copy; by default all.")] = None,
    skip: Annotated[int, typer.Option(min=0, help="Blocks to skip in SOURCE.")] = 0,
    seek: Annotated[int, typer.Option(min=0, help="Blocks to skip in TARGET.")] = 0,
    format: Format = None,
    target_format: Annotated[str | None, typer.Option("--target-format", "-F")] = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Copy a range of one disk into another that exists."""
    from sublet.block import open_image

    unit = _size(block_size)
    folders = allow or ()
    with open_image(source, format=format, readonly=True, folders=folders) as one:
        with open_image(target, format=target_format, folders=folders) as other:
            start, place = skip * unit, seek * unit
            room = max(0, min(one.size - start, other.size - place))
            size = max(0, one.size - start) if count is None else count * unit
            if size > room:
                raise UsageError(f"{size} bytes do not fit: {room} bytes are there to copy")
            with ProgressDisplay() as progress:
                for done in range(0, size, 1 << 20):
                    piece = min(1 << 20, size - done)
                    other.write(place + done, one.read(start + done, piece))
                    progress("copying", done, size)
    if as_json:
        _print_json({"copied": size})


@disk.command()
def serve(
    file: File,
    socket: Annotated[
        Path | None, typer.Option("--socket", metavar="PATH", help="Unix socket to listen on.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port on the loopback address instead; 0: any.")
    ] = None,
    export: Annotated[str, typer.Option(help="Name of the export.")] = "",
    readonly: Annotated[bool, typer.Option("--readonly", help="Refuse writes.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Leave when the first client has gone.")] = False,
    format: Format = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Serve a disk to NBD clients, until Ctrl-C or SIGTERM.

    Clients are not authenticated: a Unix socket is for who may open it, a port for every user of this host.
    """
    from sublet.block import open_image
    from sublet.block.nbd import NbdServer
    from sublet.cli.listener import address_of, listen, stops_on_signals

    with open_image(file, format=format, readonly=readonly, folders=allow or ()) as image:
        with listen(socket, port) as listener:
            server = NbdServer(image, listener, export=export)
            where = address_of(listener, export)
            if as_json:
                _print_json({"file": str(file), "uri": where})
            else:
                say(f"serving {file} at {where}")
            with stops_on_signals(server.stop):
                server.serve(once=once)


def _size(text: str) -> int:
    try:
        size = parse_size(f"{text}B" if text.isdecimal() and len(text) > 6 else text)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return -(-size // 512) * 512


def _options(pairs: list[str] | None) -> dict[str, str]:
    values = {}
    for part in (part for pair in pairs or () for part in pair.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"{part!r} is no option: write NAME=VALUE")
        values[name] = value
    return values


def _shown(display: ProgressDisplay, message: str) -> Any:
    return lambda done, total: display(message, done, total)


def _describe(image: Any) -> dict[str, Any]:
    facts = image.info()
    backing = facts.backing
    return {
        "file": str(facts.path),
        "format": facts.format,
        "size": facts.size,
        "file_size": facts.file_size,
        "allocated": facts.allocated,
        "block_size": facts.block_size,
        "cluster_size": facts.cluster_size,
        "backing": backing.path if backing else None,
        "backing_format": backing.format if backing else None,
        "dirty": facts.dirty,
        "encrypted": facts.encrypted,
        "snapshots": [vars(one) for one in facts.snapshots],
        "details": dict(facts.details),
    }


def _text(name: str, value: Any) -> str:
    if name in ("size", "file_size", "allocated", "cluster_size", "block_size"):
        return f"{format_size(value)} ({value} bytes)"
    if name == "snapshots":
        return ", ".join(str(one["name"]) for one in value)
    if name == "details":
        return ", ".join(f"{key} {item}" for key, item in value.items() if item not in (None, [], False))
    return "yes" if value is True else str(value)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


def _print_snapshots(snapshots: list[dict[str, Any]]) -> None:
    import datetime

    for one in snapshots:
        when = datetime.datetime.fromtimestamp(one["created"], datetime.UTC).isoformat(timespec="seconds")
        typer.echo(f"{one['id']}\t{one['name']}\t{when}\t{format_size(one['size'])}")


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
