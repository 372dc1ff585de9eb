# A boot sector that goes through the modes of the video BIOS: it sets one, fills the memory window with a
# pattern, and waits for a key. 512 bytes at 7C00h, real mode.
.intel_syntax noprefix
.code16
.globl _start
_start:
    cli
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7c00
    mov si, offset modes
    cld
    sti
next:
    lodsw
    cmp ax, -1
    je end
    test ax, ax
    js linear
    int 0x10
    jmp drawn
linear:
    mov bx, ax              # bit 15: no number, but a sign that this is one of VBE's
    and bx, 0x7fff
    mov ax, 0x4f02
    int 0x10
drawn:
    mov cx, 0x2000          # no cursor: it blinks
    mov ah, 1
    int 0x10
    lodsw
    mov es, ax
    lodsw
    mov cx, ax
    xor di, di
fill:
    mov ax, di
    xor al, ah
    and al, 0x7f            # no blinking, and no character with a ninth dot
    stosb
    loop fill
    mov ah, 0
    int 0x16
    jmp next
end:
    hlt
    jmp end

# Mode, segment of the window, bytes to fill.
modes:
    .word 0x03, 0xb800, 4000
    .word 0x04, 0xb800, 0x4000
    .word 0x06, 0xb800, 0x4000
    .word 0x0d, 0xa000, 8000
    .word 0x12, 0xa000, 38400
    .word 0x13, 0xa000, 64000
    .word 0x8101, 0xa000, 0xffff
    .word 0x8111, 0xa000, 0xffff
    .word 0x8112, 0xa000, 0xffff
    .word 0x8142, 0xa000, 0xffff
    .word -1
    .org 510
    .word 0xaa55
