"""A guest under firmware that programs whatever a PC has at random, and resets: boot after boot.

Ports (known and unknown), configuration space, what the BARs lead to, fixed windows (APICs, HPET, flash, VGA,
ECAM), MSRs and fw_cfg's DMA. SeaBIOS starts it from a CD (El Torito 1.0, no emulation), OVMF as the boot
loader of a FAT file system (UEFI 2.10 §3.5.1.1 "Removable Media Boot Behavior").
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Final

from tests.conformance.engine.guests import assemble
from tests.guests import kernels

MARK: Final = "fuzz "
"""Printed at each boot, with the seed behind it."""
_ORIGIN: Final = 0x8000
_BOOT_SECTOR: Final = 0x7C00
_STEPS: Final = 0x7FF
"""At most so many accesses from one reset to the next, one less than a power of two: few, because a random
IPI or SMI soon hangs the guest."""
_CD_SECTOR: Final = 2048
_PORTS: Final = (
    *(0x00, 0x20, 0x40, 0x60, 0x70, 0x80, 0x92, 0xA0, 0xB2, 0xC0, 0xD0, 0xF0),
    *(0x170, 0x1F0, 0x2F8, 0x376, 0x3B0, 0x3C0, 0x3C8, 0x3D0, 0x3F0, 0x3F6, 0x3F8),
    *(0x402, 0x4D0, 0x505, 0x510, 0x514, 0x600, 0xCF8, 0xCFC, 0xAF00, 0x1CE),
)
_WINDOWS: Final = (
    (0xFEE0_0000, 0x0FF0),  # local APIC
    (0xFEE0_0300, 0x0010),  # its command register: IPIs
    (0xFEC0_0000, 0x001C),  # I/O APIC
    (0xFED0_0000, 0x03FC),  # HPET
    (0xFED1_C000, 0x3FFC),  # chipset registers of q35
    (0x000A_0000, 0x1_FFFF),  # VGA, SMRAM
    (0x000C_0000, 0x3_FFFF),  # ROMs
    (0xFFC0_0000, 0x3F_FFFC),  # flash
    (0xB000_0000, 0x0F_FFFC),  # ECAM of q35
    (0xFEB0_0000, 0x0F_FFFC),  # where SeaBIOS puts small BARs
    (0xFD00_0000, 0x1FF_FFFC),
    (0xC000_0000, 0x3FFF_FFFC),  # all between RAM and 4 GiB
    (0x8000_0000, 0x3FFF_FFFC),
    (0x0000_0000, 0x0FFF),  # interrupt vectors, BIOS data
    (0x0020_0000, 0x0F_FFFC),  # RAM that DMA finds, with A20 off too
    (0x0000_E000, 0x1FFC),
)
_MSRS: Final = (0x00, 0x10, 0x3B, 0x170, 0x1A0, 0x200, 0x250, 0x277, 0x2F0, 0x400, 0x6E0, 0x800, 0x830, 0xDA0)
_HIGH_MSRS: Final = (0xC000_0080, 0xC001_0000)


def make_cd(folder: Path) -> Path:
    """Write ``fuzz.iso``, for the BIOS: a boot record, a catalogue and the code."""
    code = assemble(_FROM_BIOS, _BOOT_SECTOR, bits=16).ljust(_ORIGIN - _BOOT_SECTOR, b"\0") + _payload()
    image = bytearray(32 * _CD_SECTOR)
    image[16 * _CD_SECTOR : 16 * _CD_SECTOR + 7] = b"\x01CD001\x01"
    record = b"\x00CD001\x01EL TORITO SPECIFICATION".ljust(0x47, b"\0") + struct.pack("<I", 18)
    image[17 * _CD_SECTOR : 17 * _CD_SECTOR + len(record)] = record
    validation = bytearray(b"\x01".ljust(30, b"\0") + b"\x55\xaa")
    struct.pack_into("<H", validation, 28, -sum(struct.unpack("<16H", validation)) & 0xFFFF)
    entry = struct.pack("<BBHBBHI", 0x88, 0, 0, 0, 0, -(-len(code) // 512), 19).ljust(32, b"\0")
    image[18 * _CD_SECTOR : 18 * _CD_SECTOR + 64] = validation + entry
    image[19 * _CD_SECTOR : 19 * _CD_SECTOR + len(code)] = code
    path = folder / "fuzz.iso"
    path.write_bytes(image)
    return path


def make_esp(folder: Path) -> Path:
    """Write ``fuzz.img``, for UEFI: a FAT file system with the code as its boot loader. Needs mtools."""
    loader, image = folder / "bootx64.efi", folder / "fuzz.img"
    loader.write_bytes(_portable_executable(assemble(_FROM_UEFI, 0x1000) + _payload()))
    image.write_bytes(bytes(1440 << 10))
    steps = [["mformat", "-f", "1440"], ["mmd", "::EFI", "::EFI/BOOT"]]
    steps.append(["mcopy", str(loader), "::EFI/BOOT/BOOTX64.EFI"])
    for command, *arguments in steps:
        subprocess.run([command, "-i", str(image), *arguments], check=True, capture_output=True)
    return image


def _payload() -> bytes:
    code = _CODE.format(
        steps=_STEPS,
        mark="\n".join(f"mov al, {ord(letter)}\nout dx, al" for letter in MARK),
        ports="\n".join(f".word {_PORTS[index % len(_PORTS)]:#x}" for index in range(64)),
        windows="\n".join(f".long {base:#x}, {mask:#x}" for base, mask in _WINDOWS),
        msrs="\n".join(f".long {index:#x}" for index in (*_MSRS, *_HIGH_MSRS)),
    )
    return assemble(kernels.WITH_TABLES + code + kernels.RANDOM + kernels.TABLES, _ORIGIN, bits=32)


def _portable_executable(code: bytes) -> bytes:
    """An EFI application of one section at 0x1000 (PE format, Microsoft's specification, revision 11)."""
    size = -(-len(code) // 0x1000) * 0x1000
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 112 + 16 * 8, 0x22E)
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, size, 0, 0, 0x1000, 0x1000)
    optional += struct.pack(
        "<QIIHHHHHHIIIIHH", 0, 0x1000, 0x200, 0, 0, 0, 0, 0, 0, 0, 0x1000 + size, 0x400, 0, 10, 0
    )
    optional += struct.pack("<QQQQII", 0, 0, 0, 0, 0, 16).ljust(40 + 16 * 8, b"\0")
    section = b".text".ljust(8, b"\0") + struct.pack(
        "<IIIIIIHHI", size, 0x1000, size, 0x400, 0, 0, 0, 0, 0xE000_0020
    )
    return (dos + coff + optional + section).ljust(0x400, b"\0") + code.ljust(size, b"\0")


_FROM_BIOS: Final = f"""
    cli
    xor ax, ax
    mov ds, ax
    lgdt [gdtr]
    mov eax, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long {_ORIGIN:#x}
    .word 8
    .balign 8
gdt:
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdtr:
    .word 23
    .long gdt
"""
_FROM_UEFI: Final = f"""
    cli
    cld
    lea rsi, [rip + payload]
    mov edi, {_ORIGIN:#x}
    mov ecx, 0x2000
    rep movsb
    mov rax, 0x00cf9a000000ffff
    mov [0x7008], rax
    mov rax, 0x00cf92000000ffff
    mov [0x7010], rax
    mov word ptr [0x7100], 23
    mov qword ptr [0x7102], 0x7000
    lgdt [0x7100]
    lea rsi, [rip + to_32]
    mov edi, 0x7200
    mov ecx, 64
    rep movsb
    mov rsp, 0x7000
    push 8
    push 0x7200
    .byte 0x48
    retf
to_32:
    .code32
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, 0x11
    mov cr0, eax
    mov ecx, 0xc0000080
    xor eax, eax
    xor edx, edx
    wrmsr
    mov cr4, eax
    mov eax, {_ORIGIN:#x}
    jmp eax
    .code64
    .balign 16
payload:
"""
_CODE: Final = """
    mov esp, 0x7000
    rdtsc
    mov ebp, eax
    or ebp, 1
    mov dx, 0x3f8
    {mark}
    mov ebx, ebp
    mov ecx, 8
digit:
    rol ebx, 4
    mov eax, ebx
    and eax, 15
    mov al, [digits + eax]
    out dx, al
    dec ecx
    jnz digit
    mov al, 10
    out dx, al
    call random
    and eax, {steps}
    mov [left], eax
step:
    mov esp, 0x7000
    mov [state], ebp
    dec dword ptr [left]
    js reset
    call random
    mov ebx, eax
    mov esi, ebx
    shr esi, 4
    and ebx, 15
    cmp ebx, 5
    jb known_port
    je any_port
    cmp ebx, 8
    jb configuration
    cmp ebx, 11
    jb window
    je msr
    cmp ebx, 13
    jb bar
    je dma
    cmp ebx, 14
    je string
    mov edx, 0x3f8
    mov al, '.'
    test esi, 0xfe
    jnz enable
    out dx, al
enable:
    call device
    and eax, 0xff00ff00
    or eax, 0x80000004
    mov dx, 0xcf8
    out dx, eax
    mov dx, 0xcfc
    mov ax, 7
    out dx, ax
    jmp step

known_port:
    mov edx, esi
    and edx, 63
    mov dx, [ports + edx * 2]
    shr esi, 6
    and esi, 7
    add edx, esi
    jmp port
any_port:
    mov edx, esi
port:
    call random
    test ebp, 0x100
    jz port_in
    test ebp, 0x600
    jz out8
    test ebp, 0x400
    jz out16
    out dx, eax
    jmp step
out8:
    out dx, al
    jmp step
out16:
    out dx, ax
    jmp step
port_in:
    test ebp, 0x400
    jz in8
    in eax, dx
    jmp step
in8:
    in al, dx
    jmp step

device:
    call random
    mov ecx, eax
    and eax, 0x0000fffc
    test ecx, 0x30000
    jnz small
    or eax, 0x00010000
small:
    test ecx, 0xc0000
    jz far
    and eax, 0xff1f3ffc
far:
    or eax, 0x80000000
    ret

configuration:
    call device
    mov dx, 0xcf8
    out dx, eax
    call random
    mov dx, 0xcfc
    test ebp, 0x100
    jz read_configuration
    out dx, eax
    jmp step
read_configuration:
    in eax, dx
    jmp step

window:
    mov edx, esi
    and edx, 15
    call random
    and eax, [windows + edx * 8 + 4]
    add eax, [windows + edx * 8]
    mov edx, eax
memory:
    cmp edx, 0x7000
    jb touch
    cmp edx, 0xe000
    jb step
touch:
    call random
    test ebp, 0x100
    jz load
    test ebp, 0x600
    jz store8
    test ebp, 0x400
    jz store16
    mov [edx], eax
    jmp step
store8:
    mov [edx], al
    jmp step
store16:
    mov [edx], ax
    jmp step
load:
    mov eax, [edx]
    jmp step

bar:
    call device
    and eax, 0x80fff800
    test ebp, 0x1000
    jz function
    and eax, 0xfffff8ff
function:
    mov ecx, ebp
    shr ecx, 14
    and ecx, 7
    lea eax, [eax + ecx * 4 + 0x10]
    mov dx, 0xcf8
    out dx, eax
    mov dx, 0xcfc
    in eax, dx
    mov edx, eax
    call random
    test edx, 1
    jnz port_bar
    and edx, 0xfffffff0
    and eax, 0x3ffc
    test ebp, 0x20000
    jnz near
    and eax, 0xfc
near:
    add edx, eax
    jmp memory
port_bar:
    and edx, 0xfffc
    and eax, 0x3f
    add edx, eax
    jmp port

msr:
    mov edx, esi
    and edx, 15
    mov ecx, [msrs + edx * 4]
    shr esi, 4
    and esi, 63
    add ecx, esi
    call random
    mov edx, eax
    call random
    test ebp, 0x100
    jz read_msr
    test ebp, 0x600
    jnz write_msr
    xor edx, edx
write_msr:
    wrmsr
    jmp step
read_msr:
    rdmsr
    jmp step

dma:
    call random
    and eax, 0x1f00ff3f
    mov [0x200000], eax
    call random
    and eax, 0xffff0000
    mov [0x200004], eax
    and dword ptr [0x200008], 0
    call random
    and eax, 0xfff00000
    or eax, 0x2100
    mov [0x20000c], eax
    mov dx, 0x514
    xor eax, eax
    out dx, eax
    mov dx, 0x518
    mov eax, 0x2000
    out dx, eax
    jmp step

string:
    mov edx, esi
    and edx, 63
    mov dx, [ports + edx * 2]
    call random
    mov ecx, eax
    and ecx, 0x3ff
    mov edi, 0x210000
    mov esi, 0x210000
    test ebp, 0x100
    jz read_string
    rep outsb
    jmp step
read_string:
    rep insd
    jmp step

reset:
    call random
    test eax, 0x100
    jz by_keyboard
    test eax, 0x200
    jz by_port_92
    mov dx, 0xcf9
    mov al, 6
    out dx, al
by_keyboard:
    mov al, 0xfe
    out 0x64, al
by_port_92:
    mov al, 1
    out 0x92, al
    lidt [none]
    ud2

handler:
    mov ebp, [state]
    call random
    jmp step

    .balign 8
none:
    .quad 0
state:
    .long 0
left:
    .long 0
digits:
    .ascii "0123456789abcdef"
ports:
{ports}
windows:
{windows}
msrs:
{msrs}
"""
