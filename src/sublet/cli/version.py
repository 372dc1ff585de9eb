"""``sublet version``."""

from __future__ import annotations

import platform
from importlib import metadata

import click


def version() -> None:
    """Print the version of sublet, of its core, and of Python."""
    from sublet.engine import core_version

    click.echo(
        f"sublet {metadata.version('sublet')} (core {core_version()}, Python {platform.python_version()})"
    )
