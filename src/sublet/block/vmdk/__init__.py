"""VMDK, the format of VMware: monolithic and split, sparse and flat, stream-optimized, and the ESX kinds."""

from __future__ import annotations

from typing import Final

from sublet.block.format import ImageFormat
from sublet.block.vmdk.create import VmdkFormat
from sublet.block.vmdk.image import VmdkImage

__all__ = ["FORMAT", "VmdkFormat", "VmdkImage"]

FORMAT: Final[ImageFormat] = VmdkFormat()
