"""What several verbs of ``sublet disk`` print."""

from __future__ import annotations

import json
from typing import Any

import click

from sublet.cli.messages import ProgressDisplay


def shown(display: ProgressDisplay, message: str) -> Any:
    """A ``block.operations.Progress`` that shows one message."""
    return lambda done, total: display(message, done, total)


def describe(image: Any) -> dict[str, Any]:
    """What ``info`` and ``create`` print of an image."""
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


def print_json(value: Any) -> None:
    """Print for programs."""
    click.echo(json.dumps(value, indent=2, default=str))
