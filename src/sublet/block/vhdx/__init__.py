"""VHDX: the disks of Hyper-V since Windows Server 2012."""

from __future__ import annotations

from sublet.block.vhdx.files import VhdxFormat

FORMAT = VhdxFormat()

__all__ = ["FORMAT", "VhdxFormat"]
