"""Which board each machine has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sublet.engine import Vm
from sublet.machine.board import Board
from sublet.machine.config import MachineConfig
from sublet.machine.memory import SystemMemory
from sublet.machine.microvm import MicroVm
from sublet.machine.nonvolatile import Nonvolatile
from sublet.machine.pc import Pc
from sublet.machine.q35 import Q35
from sublet.machine.runloop import EndMachine

_BOARDS: Final[dict[str, type[Board]]] = {"microvm": MicroVm, "pc": Pc, "q35": Q35}


def make_board(
    config: MachineConfig,
    memory: SystemMemory,
    vm: Vm,
    write: Callable[[bytes], None],
    end: EndMachine,
    nonvolatile: Nonvolatile,
) -> Board:
    """The board that ``config.machine`` names; see `Board`."""
    return _BOARDS[config.machine](config, memory, vm, write, end, nonvolatile)
