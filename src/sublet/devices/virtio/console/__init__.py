"""virtio-console."""

from __future__ import annotations

from sublet.devices.virtio.console.device import VirtioConsole

__all__ = ["VirtioConsole"]
