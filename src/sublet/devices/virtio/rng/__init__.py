"""virtio-rng."""

from __future__ import annotations

from sublet.devices.virtio.rng.device import VirtioRng

__all__ = ["VirtioRng"]
