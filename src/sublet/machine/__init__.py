"""One machine: its definition, address map, boot, wiring and run loop."""

from __future__ import annotations

from sublet.machine.config import DiskConfig, MachineConfig
from sublet.machine.console import Console
from sublet.machine.profile import Place
from sublet.machine.run import MachineResult, run_machine
from sublet.machine.screen import Screen

__all__ = ["Console", "DiskConfig", "MachineConfig", "MachineResult", "Place", "Screen", "run_machine"]
