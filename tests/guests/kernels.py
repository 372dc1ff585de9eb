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


WITH_TABLES: Final = """
    lgdt [gdtr]
    .byte 0xea
    .long reloaded
    .word 8
reloaded:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov edi, offset idt
    mov ecx, 256
gate:
    mov eax, offset handler
    and eax, 0xffff
    or eax, 0x80000
    mov [edi], eax
    mov eax, offset handler
    and eax, 0xffff0000
    or eax, 0x8e00
    mov [edi + 4], eax
    add edi, 8
    dec ecx
    jnz gate
    lidt [idtr]
"""
"""Loads flat segments and an IDT whose 256 gates lead to ``handler``; needs `TABLES` behind the code."""
RANDOM: Final = """
random:
    mov eax, ebp
    shl eax, 13
    xor ebp, eax
    mov eax, ebp
    shr eax, 17
    xor ebp, eax
    mov eax, ebp
    shl eax, 5
    xor ebp, eax
    mov eax, ebp
    imul eax, eax, 0x9e3779b1
    ret

"""
"""``random``: the next number of an xorshift generator whose state is EBP, multiplied, in EAX."""
TABLES: Final = """
    .balign 8
gdt:
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdtr:
    .word 23
    .long gdt
idtr:
    .word 2047
    .long idt
    .balign 8
idt:
    .skip 2048
"""


def write_kernel(directory: Path, source: str) -> Path:
    """An ELF kernel in ``directory`` that runs Intel-syntax ``source``; code and stack share 1 MiB."""
    code = assemble(f"mov esp, {STACK}\n{source}", ORIGIN, bits=32)
    path = directory / "kernel"
    path.write_bytes(Elf(entry=ORIGIN, segments=[(ORIGIN, code, 0x10_0000)]).build())
    return path
