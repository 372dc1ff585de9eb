"""Networks of the host's kernel: TAP devices, bridges, and macvtap on a real interface."""

from __future__ import annotations

from sublet.net.tap.device import TapSink
from sublet.net.tap.modes import open_bridged, open_hostonly, open_tap

__all__ = ["TapSink", "open_bridged", "open_hostonly", "open_tap"]
