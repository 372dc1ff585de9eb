"""Serving a disk to any NBD client."""

from __future__ import annotations

from sublet.block.nbd.server import NbdServer

__all__ = ["NbdServer"]
