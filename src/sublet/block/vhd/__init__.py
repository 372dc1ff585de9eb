"""VHD: the disks of Virtual PC, Virtual Server, Hyper-V, XenServer and Azure."""

from __future__ import annotations

from sublet.block.vhd.files import VhdFormat

FORMAT = VhdFormat()

__all__ = ["FORMAT", "VhdFormat"]
