"""Disk images: formats behind one contract, the chains they form, and the host files they are in."""

from __future__ import annotations

from sublet.block.contract import BlockDevice, BlockStatus, Extent
from sublet.block.description import (
    CheckReport,
    ImageInfo,
    MapExtent,
    Snapshot,
)
from sublet.block.format import Image
from sublet.block.images import create_image, open_image
from sublet.block.raw import RawImage

__all__ = [
    "BlockDevice",
    "BlockStatus",
    "CheckReport",
    "Extent",
    "Image",
    "ImageInfo",
    "MapExtent",
    "RawImage",
    "Snapshot",
    "create_image",
    "open_image",
]
