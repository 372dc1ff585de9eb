"""Disk images as devices see them, and the formats behind them (raw so far)."""

from __future__ import annotations

from sublet.block.contract import BlockDevice, BlockStatus, Extent
from sublet.block.raw import RawImage

__all__ = ["BlockDevice", "BlockStatus", "Extent", "RawImage"]
