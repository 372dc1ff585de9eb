"""VDI, the format of Oracle VirtualBox: dynamic, fixed and differencing images."""

from __future__ import annotations

from typing import Final

from sublet.block.format import ImageFormat
from sublet.block.vdi.image import VdiFormat, VdiImage

__all__ = ["FORMAT", "VdiFormat", "VdiImage"]

FORMAT: Final[ImageFormat] = VdiFormat()
