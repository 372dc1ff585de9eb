"""Which board each machine has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sublet.engine import Vm
from sublet.errors import UsageError
from sublet.machine.board import Board
from sublet.machine.config import MachineConfig
from sublet.machine.memory import SystemMemory
from sublet.machine.microvm import MicroVm
from sublet.machine.runloop import EndMachine

_BOARDS: Final[dict[str, type[Board]]] = {"microvm": MicroVm}


def make_board(
    config: MachineConfig, memory: SystemMemory, vm: Vm, write: Callable[[bytes], None], end: EndMachine
) -> Board:
    """The board that ``config.machine`` names; see `Board`."""
    if config.machine not in _BOARDS:
        raise UsageError(f"there is no machine {config.machine} yet")
    return _BOARDS[config.machine](config, memory, vm, write, end)
