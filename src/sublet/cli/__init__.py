"""The ``sublet`` command: one file a verb, no logic."""

from __future__ import annotations

from sublet.cli.app import main

__all__ = ["main"]
