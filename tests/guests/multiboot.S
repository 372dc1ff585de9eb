/* A Multiboot kernel: prints on COM1 what it was told, then powers the machine off by ACPI's PM1a.
   Assembled with VERSION set to 1 or 2. */

#define COM1 0x3f8
#define PM1A_CONTROL 0x604
#define S5 0x3400

    .section .text.start, "ax"
#if VERSION == 1
    .balign 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)
#else
    .balign 8
header:
    .long 0xe85250d6, 0, header_end - header, -(0xe85250d6 + header_end - header)
    .word 1, 0
    .long 16, 3, 6          /* modules and the memory map */
    .balign 8
    .word 0, 0
    .long 8
header_end:
#endif

    .globl _start
    .code32
_start:
    mov $stack_end, %esp
    mov %ebx, %ebp
#if VERSION == 1
    cmp $0x2badb002, %eax
    jne fail
    mov 16(%ebp), %esi      /* command line */
    call print
    mov 24(%ebp), %ebx      /* first module */
    mov 8(%ebx), %esi
    call print
    mov (%ebx), %esi
    call print
    mov 4(%ebp), %ebx       /* KiB of low memory */
    cmpl $48, 44(%ebp)      /* two entries of the map at least */
    jb fail
    mov 48(%ebp), %edi
    add $4, %edi
#else
    cmp $0x36d76289, %eax
    jne fail
    lea 8(%ebp), %ebx
next_tag:
    mov (%ebx), %eax
    test %eax, %eax
    jz done
    lea 8(%ebx), %esi
    cmp $1, %eax            /* command line */
    je text
    cmp $4, %eax
    je low_memory
    cmp $6, %eax
    je memory_map
    cmp $14, %eax
    je acpi
    cmp $15, %eax
    je acpi
    cmp $3, %eax            /* module */
    jne skip
    lea 16(%ebx), %esi
    call print
    mov 8(%ebx), %esi
text:
    call print
skip:
    mov 4(%ebx), %eax
    add $7, %eax
    and $-8, %eax
    add %eax, %ebx
    jmp next_tag
low_memory:
    mov 8(%ebx), %eax
    mov %eax, low
    jmp skip
acpi:                       /* the pointer's signature */
    cmpl $0x20445352, 8(%ebx)
    jne fail
    jmp skip
memory_map:
    cmpl $64, 4(%ebx)       /* two entries at least */
    jb fail
    lea 16(%ebx), %edi
    jmp skip
#endif
done:
#if VERSION == 2
    mov low, %ebx
#endif
    mov $memory, %esi
    call print_text
    mov %ebx, %eax
    call print_decimal
    /* The map's first entry is that memory, the second reserved above it. */
    shl $10, %ebx
    mov $wrong, %esi
    cmpl $0, (%edi)
    jne 1f
    cmp %ebx, 8(%edi)
    jne 1f
    cmpl $1, 16(%edi)
    jne 1f
    cmp %ebx, 24(%edi)
    jne 1f
    mov $end, %esi
1:  call print
    mov $PM1A_CONTROL, %dx
    mov $S5, %ax
    out %ax, %dx
fail:
    hlt
    jmp fail

/* The string at ESI and a newline. */
print:
    call print_text
newline:
    mov $10, %al
    out %al, %dx
    ret
print_text:
    mov $COM1, %dx
1:  lodsb
    test %al, %al
    jz 2f
    out %al, %dx
    jmp 1b
2:  ret

/* EAX and a newline. */
print_decimal:
    mov $10, %ecx
    push $0
1:  xor %edx, %edx
    div %ecx
    add $'0', %edx
    push %edx
    test %eax, %eax
    jnz 1b
    mov $COM1, %dx
2:  pop %eax
    test %eax, %eax
    jz newline
    out %al, %dx
    jmp 2b

    .data
memory:
    .asciz "memory "
wrong:
    .asciz "another map"
end:
    .asciz "end"
low:
    .long 0

    .bss
    .balign 16
    .space 4096
stack_end:
