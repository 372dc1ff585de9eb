// A boot sector that divides by zero with CR0.NE clear, and prints on the serial port what comes of it:
// a letter and the x87 status in hexadecimal where it is handled,
//
//   N84   by INT 2, which the BIOS's handler of IRQ 13 calls
//   R84   by a real-mode handler, after WAIT and FSTP under IGNNE#
//   P84   by a handler of 32-bit protected mode
//   .     each went on after its handler
.intel_syntax noprefix
.code16
.globl start
start:
    ljmp 0, offset 1f
1:  xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7000
    mov word ptr [4 * 2], offset int2
    mov word ptr [4 * 2 + 2], ax
    in al, 0xa1
    and al, 0xdf
    out 0xa1, al
    in al, 0x21
    and al, 0xfb
    out 0x21, al
    mov dx, 0x3f8
    mov al, '\n'
    out dx, al
    call divide
    mov word ptr [4 * 0x75], offset irq13
    mov word ptr [4 * 0x75 + 2], 0
    call divide
    lgdt [gdtr]
    lidt [idtr]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    ljmp 8, offset protected

.macro division
    mov byte ptr [seen], 0
    fninit
    // QEMU's IGNNE# falls at FLDENV, not at FNCLEX.
    fnstenv [environment]
    fldenv [environment]
    fldcw [control]
    fld1
    fldz
    fdivp
    sti
    fwait
1:  cmp byte ptr [seen], 0
    je 1b
    cli
.endm

.macro end_of_interrupt
    mov byte ptr [seen], 1
    mov al, 0x20
    out 0xa0, al
    out 0x20, al
.endm

divide:
    division
    ret

int2:
    mov bl, 'N'
    mov dx, 0x3f8
    call print
    mov byte ptr [seen], 1
    iret

irq13:
    out 0xf0, al
    fwait
    fstp dword ptr [result]
    mov bl, 'R'
    mov dx, 0x3f8
    call print
    end_of_interrupt
    iret

// BL, the status and a line's end to port DX; clears the exceptions. 16-bit and 32-bit code alike.
print:
    fnstsw ax
    fnclex
    mov bh, al
    mov al, bl
    out dx, al
    mov al, bh
    shr al, 4
    add al, '0'
    out dx, al
    mov al, bh
    and al, 15
    add al, '0'
    out dx, al
    mov al, '\n'
    out dx, al
    ret

.code32
protected:
    mov ax, 16
    mov ds, ax
    mov ss, ax
    division
    mov dx, 0x3f8
    mov al, '.'
    out dx, al
    mov al, '\n'
    out dx, al
    // Off: S5 is type 5 here and 0 in QEMU.
    mov dx, 0x604
    mov ax, 0x3400
    out dx, ax
    mov ax, 0x2000
    out dx, ax
    hlt

gate:
    out 0xf0, al
    mov bl, 'P'
    mov dx, 0x3f8
    call print
    end_of_interrupt
    iretd

control: .word 0x37b
    .balign 8
gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdtr:
    .word 23
    .long gdt
// The only vector that comes; its gate is 0x75 * 8 bytes after the table's address.
idtr:
    .word 0x75 * 8 + 7
    .long irq13_gate - 0x75 * 8
irq13_gate:
    .word gate, 8, 0x8e00, 0
    .org 510
    .byte 0x55, 0xaa
seen = 0x6000
result = 0x6004
environment = 0x6010
