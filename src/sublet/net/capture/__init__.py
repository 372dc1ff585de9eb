"""Recording what passes on cables, for Wireshark."""

from __future__ import annotations

from sublet.net.capture.filter import compile_filter
from sublet.net.capture.recorder import Recorder

__all__ = ["Recorder", "compile_filter"]
