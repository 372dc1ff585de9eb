"""``sublet disk compact``."""

from __future__ import annotations

from sublet.cli.disk.arguments import Allow, AsJson, File, Format
from sublet.cli.disk.output import print_json, shown
from sublet.cli.messages import ProgressDisplay, say
from sublet.units import format_size


def compact(file: File, format: Format = None, allow: Allow = None, as_json: AsJson = False) -> None:
    """Give storage back that holds nothing but zeroes, in place."""
    from sublet.block import open_image
    from sublet.block.operations import compact as run

    with open_image(file, format=format, folders=allow or ()) as image, ProgressDisplay() as progress:
        freed = run(image, progress=shown(progress, f"compacting {file.name}"))
    if as_json:
        print_json({"file": str(file), "freed": freed})
    else:
        say(f"{format_size(freed)} given back")
