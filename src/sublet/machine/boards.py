"""Which board each machine has."""

from __future__ import annotations

from importlib import import_module
from typing import Final, cast

from sublet.machine.board import Board
from sublet.machine.chassis import Chassis

_BOARDS: Final = {
    "microvm": "sublet.machine.microvm:MicroVm",
    "pc": "sublet.machine.pc:Pc",
    "q35": "sublet.machine.q35:Q35",
}
"""As ``module:class``: a machine loads the devices of its own board only."""


def make_board(chassis: Chassis) -> Board:
    """The board that the configuration's ``machine`` names; see `Board`."""
    module, _, name = _BOARDS[chassis.config.machine].partition(":")
    board = cast(type[Board], getattr(import_module(module), name))
    return board(chassis)
