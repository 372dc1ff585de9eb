"""The face of the core: the engines, what they run, and the choice between them.

The classes are the core's own, so that a pass through ``Vcpu.run`` costs nothing more here. What
they raise is of ``sublet.errors`` already (see ``sublet.core.exceptions``).
"""

from __future__ import annotations

from sublet.core import (
    EXIT_HLT,
    EXIT_HYPERCALL,
    EXIT_INTERNAL_ERROR,
    EXIT_INTERRUPT_WINDOW,
    EXIT_INTERRUPTED,
    EXIT_MMIO_READ,
    EXIT_MMIO_WRITE,
    EXIT_PIO_IN,
    EXIT_PIO_OUT,
    EXIT_SHUTDOWN,
    EXIT_SYSTEM_RESET,
    Engine,
    Exit,
    GuestMemory,
    RamBlock,
    Vcpu,
    Vm,
    core_version,
)
from sublet.engine.choice import ENGINE_CHOICES, EngineChoice, open_engine, probe_engines
from sublet.engine.verdict import EngineVerdict

__all__ = [
    "ENGINE_CHOICES",
    "EXIT_HLT",
    "EXIT_HYPERCALL",
    "EXIT_INTERNAL_ERROR",
    "EXIT_INTERRUPTED",
    "EXIT_INTERRUPT_WINDOW",
    "EXIT_MMIO_READ",
    "EXIT_MMIO_WRITE",
    "EXIT_PIO_IN",
    "EXIT_PIO_OUT",
    "EXIT_SHUTDOWN",
    "EXIT_SYSTEM_RESET",
    "Engine",
    "EngineChoice",
    "EngineVerdict",
    "Exit",
    "GuestMemory",
    "RamBlock",
    "Vcpu",
    "Vm",
    "core_version",
    "open_engine",
    "probe_engines",
]
