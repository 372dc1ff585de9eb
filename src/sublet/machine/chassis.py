"""What a board is built into: everything of the machine that is there before its devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sublet.engine import Vm
from sublet.machine.config import MachineConfig
from sublet.machine.memory import SystemMemory
from sublet.machine.nonvolatile import Nonvolatile
from sublet.machine.runloop import EndMachine


@dataclass(frozen=True)
class Chassis:
    """One power cycle's."""

    config: MachineConfig
    """The machine."""
    memory: SystemMemory
    """Its RAM."""
    vm: Vm
    """Interrupt lines and guest memory."""
    write: Callable[[bytes], None]
    """Where the console's output goes."""
    end: EndMachine
    """What power-off, reset, panic and failure call."""
    nonvolatile: Nonvolatile
    """What was kept of the machine's last power cycle."""
