"""A kernel that executes random bytes with every privilege, and goes on with others after each exception."""

from __future__ import annotations

from tests.guests import kernels


def code_fuzz(seed: int = 0) -> str:
    """Assembly that prints its seed and runs random code until something ends the machine.

    Args:
        seed: What to start from; 0 takes the time-stamp counter, so that each boot differs.

    The bytes never hold HLT, which with interrupts off would halt for good. An exception brings the
    segments, the descriptor tables and the stack back; other registers stay as they are. Code that loops is
    left at the next of the NMIs that the 8254 sends through the I/O APIC 1000 times a second.
    """
    return kernels.WITH_TABLES + _CODE.format(seed=seed) + kernels.RANDOM + kernels.TABLES


_CODE = """
    mov ebp, {seed}
    test ebp, ebp
    jnz 1f
    rdtsc
    mov ebp, eax
    or ebp, 1
1:  mov [state], ebp
    mov dx, 0x3f8
    mov ecx, 8
digit:
    rol ebp, 4
    mov eax, ebp
    and eax, 15
    mov al, [digits + eax]
    out dx, al
    dec ecx
    jnz digit
    mov al, 10
    out dx, al
    mov dword ptr [0xfec00000], 0x14
    mov dword ptr [0xfec00010], 0x400
    mov al, 0x34
    out 0x43, al
    mov al, 0xa9
    out 0x40, al
    mov al, 4
    out 0x40, al
next:
    mov ebp, cs:[state]
    mov edi, offset bytes
    mov ecx, 16
fill:
    call random
    stosd
    dec ecx
    jnz fill
    mov [state], ebp
    mov edi, offset bytes
    mov ecx, 64
filter:
    cmp byte ptr [edi], 0xf4
    jne 2f
    mov byte ptr [edi], 0x90
2:  inc edi
    dec ecx
    jnz filter
    call random
    mov ebx, eax
    call random
    mov esi, eax
    call random
    mov edi, eax
    jmp bytes
handler:
    cli
    cld
    lgdt cs:[gdtr]
    lidt cs:[idtr]
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, 0x1f0000
    pushfd
    push 8
    push offset next
    iretd
digits:
    .ascii "0123456789abcdef"
    .balign 64
state:
    .long 0
    .balign 4096
bytes:
    .skip 64
    .fill 64, 1, 0xcc
    .balign 4096
"""
