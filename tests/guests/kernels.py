"""Kernels of a few instructions, assembled for a test and booted through PVH.

They start in 32-bit protected mode with flat segments, no paging and interrupts off.

Reference: Xen 4.17 docs/misc/pvh.pandoc "PVH Specification".
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.conformance.engine.guests import assemble
from tests.unit.machine.images import Elf

ORIGIN: Final = 0x10_0000
STACK: Final = 0x20_0000

POWEROFF: Final = "mov dx, 0x604\nmov ax, 0x3400\nout dx, ax\n1: jmp 1b"
RESET: Final = "mov dx, 0xcf9\nmov al, 6\nout dx, al\n1: jmp 1b"
PANIC: Final = "mov dx, 0x505\nmov al, 1\nout dx, al\n1: jmp 1b"
UNDEFINED: Final = "lidt [no_idt]\nud2\nno_idt: .word 0\n.long 0"
"""An exception that no handler takes: #UD, #DF, shutdown."""
UNSUPPORTED: Final = "lidt [no_idt]\nvmxon [esp]\nno_idt: .word 0\n.long 0"
"""An instruction that CPUID does not offer."""
SPIN: Final = "cli\n1: jmp 1b"
HALT: Final = "cli\n1: hlt\njmp 1b"


def write_kernel(directory: Path, source: str) -> Path:
    """An ELF kernel in ``directory`` that runs Intel-syntax ``source``; code and stack share 1 MiB."""
    code = assemble(f"mov esp, {STACK}\n{source}", ORIGIN, bits=32)
    path = directory / "kernel"
    path.write_bytes(Elf(entry=ORIGIN, segments=[(ORIGIN, code, 0x10_0000)]).build())
    return path
