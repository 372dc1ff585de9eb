"""A kernel that reads and writes device registers at random: ports, configuration space, BARs, APICs."""

from __future__ import annotations

from typing import Final

from tests.guests import kernels

from sublet.machine import memory_map as mm

_PORTS: Final = (
    0x20,
    0xA0,
    0x40,
    0x60,
    0x70,
    0x4D0,
    mm.COM1_PORT,
    mm.PM_TIMER_PORT,
    mm.GPE0_PORT,
    0xCF8,
    0xCFC,
)
"""Each with the seven ports behind it. Those whose write ends the machine are left out."""
_SLOTS: Final = 4
_BAR_STRIDE: Final = 0x10_0000
_MSIX_OFFSET: Final = 0x8_0000


def register_fuzz(seed: int, accesses: int) -> str:
    """Assembly that makes ``accesses`` accesses derived from ``seed``, then powers off.

    Device windows are put back every 1024 accesses, because writes to configuration space move them.
    """
    ports = [_PORTS[i % len(_PORTS)] for i in range(16)]
    windows = [_windows()[i % len(_windows())] for i in range(32)]
    code = _CODE.format(
        seed=seed,
        accesses=accesses,
        ports="\n".join(f".word {port:#x}" for port in ports),
        windows="\n".join(f".long {base:#x}, {mask:#x}" for base, mask in windows),
        ecam=mm.ECAM_BASE,
        low=mm.PCI_LOW_WINDOW[0],
        stride=_BAR_STRIDE,
        msix=_MSIX_OFFSET,
        slots=_SLOTS,
    )
    return kernels.WITH_TABLES + code + kernels.RANDOM + kernels.TABLES


def _windows() -> list[tuple[int, int]]:
    """(base, mask of the offset) of the memory-mapped registers; configuration space is the rarest."""
    bars = [mm.PCI_LOW_WINDOW[0] + slot * _BAR_STRIDE for slot in range(1, _SLOTS + 1)]
    virtio = [(bar, 0x3FFC) for bar in bars] * 4 + [(bar, 0x3C) for bar in bars]
    msix = [(bar + _MSIX_OFFSET, 0x8FC) for bar in bars]
    return [*virtio, *msix, (mm.IOAPIC_BASE, 0x1C), (mm.LAPIC_BASE, 0xFF0), (mm.ECAM_BASE + 0x8000, 0x1_8FFC)]


_CODE: Final = """
    mov ebp, {seed}
    mov esi, {accesses}
step:
    test esi, 1023
    jnz 1f
    call place_windows
1:  call random
    mov ecx, eax
    mov edx, eax
    shr edx, 16
    test ecx, 1
    jz memory
    shr ecx, 1
    and ecx, 15
    and edx, 7
    add dx, [ports + ecx * 2]
    lea ecx, [edx - 0xcf9]
    cmp ecx, 3
    jb done
    call random
    test ebp, 0x100
    jz port_in
    test ebp, 0x600
    jz out8
    test ebp, 0x400
    jz out16
    out dx, eax
    jmp done
out8:
    out dx, al
    jmp done
out16:
    out dx, ax
    jmp done
port_in:
    test ebp, 0x400
    jz in8
    in eax, dx
    jmp done
in8:
    in al, dx
    jmp done
memory:
    shr ecx, 1
    and ecx, 31
    and edx, [windows + ecx * 8 + 4]
    add edx, [windows + ecx * 8]
    call random
    test ebp, 0x100
    jz load
    test ebp, 0x600
    jz store8
    test ebp, 0x400
    jz store16
    mov [edx], eax
    jmp done
store8:
    mov [edx], al
    jmp done
store16:
    mov [edx], ax
    jmp done
load:
    mov eax, [edx]
done:
    dec esi
    jnz step
    mov dx, 0x604
    mov ax, 0x3400
    out dx, ax
2:  jmp 2b

place_windows:
    mov ecx, 1
3:  mov edi, ecx
    shl edi, 15
    add edi, {ecam}
    mov eax, ecx
    imul eax, eax, {stride}
    add eax, {low}
    mov [edi + 0x10], eax
    mov dword ptr [edi + 0x14], 0
    add eax, {msix}
    mov [edi + 0x18], eax
    mov dword ptr [edi + 4], 6
    inc ecx
    cmp ecx, {slots}
    jbe 3b
    ret

handler:
    iretd

ports:
{ports}
    .balign 8
windows:
{windows}
"""
