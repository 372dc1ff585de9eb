"""One machine: its definition, address map, boot, wiring and run loop."""

from __future__ import annotations

from sublet.machine.config import DiskConfig, MachineConfig
from sublet.machine.console import Console

__all__ = ["Console", "DiskConfig", "MachineConfig"]
