"""Which board each machine has."""

from __future__ import annotations

from typing import Final

from sublet.machine.board import Board
from sublet.machine.chassis import Chassis
from sublet.machine.microvm import MicroVm
from sublet.machine.pc import Pc
from sublet.machine.q35 import Q35

_BOARDS: Final[dict[str, type[Board]]] = {"microvm": MicroVm, "pc": Pc, "q35": Q35}


def make_board(chassis: Chassis) -> Board:
    """The board that the configuration's ``machine`` names; see `Board`."""
    return _BOARDS[chassis.config.machine](chassis)
