"""virtio-blk."""

from __future__ import annotations

from sublet.devices.virtio.block.device import VirtioBlock

__all__ = ["VirtioBlock"]
