"""virtio-net."""

from __future__ import annotations

from sublet.devices.virtio.net.device import VirtioNet

__all__ = ["VirtioNet"]
