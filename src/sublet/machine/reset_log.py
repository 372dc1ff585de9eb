"""Why a machine was reset, and what its processors were doing, for who asks for it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Final

from sublet.machine.control import Request

_VARIABLE: Final = "SUBLET_RESET_LOG"
_ROWS: Final = (
    ("rip", "rflags", "cs", "ss", "rsp", "cr0", "cr2", "cr3", "cr4", "efer"),
    ("gdt", "idt", "tr", "halted", "waiting_for_startup", "smm", "nmi_masked"),
    ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"),
    tuple(f"r{number}" for number in range(8, 16)),
)
"""Registers by line: where it is, by what tables, and the others."""


class ResetLog:
    """Shows the end of a power cycle on standard error where the environment has ``SUBLET_RESET_LOG=1``."""

    def __init__(self) -> None:
        self.wanted = os.environ.get(_VARIABLE) == "1"

    def note(self, request: Request) -> None:
        """Say how the cycle ends, and which thread ends it. Any thread."""
        if self.wanted:
            self._show(f"{threading.current_thread().name}: {request.value}")

    def show_vcpu(self, index: int, state: Mapping[str, object]) -> None:
        """Show a vCPU as it stopped: its registers and events in flight, by name."""
        for row in _ROWS if self.wanted else ():
            words = (f"{name}={_text(state[name])}" for name in row if name in state)
            self._show(f"vcpu{index}: {' '.join(words)}")

    def _show(self, line: str) -> None:
        print(f"sublet: {line}", file=sys.stderr, flush=True)


def _text(value: object) -> str:
    """Numbers in hexadecimal; a segment or table as its fields."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:#x}"
    return ":".join(map(_text, value)) if isinstance(value, Iterable) else str(value)
