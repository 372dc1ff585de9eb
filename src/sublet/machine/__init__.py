"""One machine: its definition, address map, boot, wiring and run loop."""

from __future__ import annotations

from sublet.machine.config import DiskConfig, MachineConfig
from sublet.machine.console import Console
from sublet.machine.profile import Place
from sublet.machine.run import MachineResult, run_machine

__all__ = ["Console", "DiskConfig", "MachineConfig", "MachineResult", "Place", "run_machine"]
