"""32-bit protected mode: flat, and the way from there to 64-bit mode."""

from __future__ import annotations

from tests.conformance.engine.guests import CODE64, CR4_LONG, DATA, MMIO, PML4, Guest, assemble

from sublet.core import EXIT_MMIO_WRITE, EXIT_SHUTDOWN


def test_arithmetic_and_stack(vm: Guest) -> None:
    guest = vm.enter_protected_mode("push 5; pop eax; add eax, 2; inc eax; out 0x80, eax; hlt")
    assert guest.out() == 8


def test_calls_and_string_instructions(vm: Guest) -> None:
    fill = f"fill: mov edi, {DATA}; mov eax, 3; mov ecx, 4; rep stosd; ret"
    source = f"call fill; mov eax, [{DATA + 8}]; out 0x80, eax; hlt; {fill}"
    assert vm.enter_protected_mode(source).out() == 3


def test_mmio(vm: Guest) -> None:
    guest = vm.enter_protected_mode(f"mov ebx, {MMIO:#x}; mov dword ptr [ebx], 9; hlt")
    exit = guest.expect(EXIT_MMIO_WRITE)
    assert (exit.address, exit.size, exit.data) == (MMIO, 4, 9)


def test_addresses_wrap_at_4_gib(vm: Guest) -> None:
    guest = vm.enter_protected_mode(f"mov ebx, -16; mov eax, [ebx + {DATA + 16}]; out 0x80, eax; hlt")
    guest.memory.write_u32(DATA, 0x21)
    assert guest.out() == 0x21


def test_16_bit_operands_and_addresses(vm: Guest) -> None:
    guest = vm.enter_protected_mode("mov bx, 0x8000; mov ax, [bx + 2]; out 0x80, ax; hlt")
    guest.memory.write_u16(0x8002, 0x4321)
    assert guest.out() == 0x4321


def test_a_fault_without_a_table_shuts_down(vm: Guest) -> None:
    guest = vm.enter_protected_mode("ud2")
    guest.vcpu.set_sregs(idt=(0, 0))
    guest.expect(EXIT_SHUTDOWN)


def test_the_way_to_64_bit_mode(vm: Guest) -> None:
    source = f"""
        mov eax, {CR4_LONG}; mov cr4, eax; mov eax, {PML4}; mov cr3, eax
        mov ecx, 0xc0000080; rdmsr; or eax, 0x900; wrmsr
        mov eax, cr0; or eax, 0x80010000; mov cr0, eax
        push {CODE64}; push {DATA}; retf"""
    guest = vm.enter_protected_mode(source)
    guest.memory.write(DATA, assemble("mov rax, 0x123456789; shr rax, 4; out 0x80, eax; hlt", DATA))
    assert guest.out() == 0x12345678
    assert guest.cr("efer") & 0x400
