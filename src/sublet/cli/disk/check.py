"""``sublet disk check``."""

from __future__ import annotations

from typing import Annotated, Final

import click

from sublet.cli.disk.arguments import AsJson, File, Format
from sublet.cli.disk.output import print_json
from sublet.cli.parameters import Option

EPILOG: Final = "**Exit status**: 0 clean or repaired; 20 errors; 21 leaks alone; others as of every command."
EXIT_ERRORS: Final = 20
"""``check`` found errors that are not repaired."""
EXIT_LEAKS: Final = 21
"""``check`` found leaks alone that are not repaired."""


def check(
    file: File,
    repair: Annotated[bool, Option("--repair", help="Mend what can be mended without loss.")] = False,
    format: Format = None,
    as_json: AsJson = False,
) -> int:
    """Look for damage in an image's own tables."""
    from sublet.block import open_image

    with open_image(file, format=format, readonly=not repair, check=True) as image:
        report = image.check(repair=repair)
    if as_json:
        print_json({"file": str(file), "clean": report.clean, **vars(report)})
    else:
        for finding in report.findings:
            click.echo(finding)
        repaired = report.errors_repaired + report.leaks_repaired
        click.echo(f"{report.errors} errors, {report.leaks} leaks, {repaired} repaired")
    if report.errors > report.errors_repaired:
        return EXIT_ERRORS
    return EXIT_LEAKS if report.leaks > report.leaks_repaired else 0
