"""Interrupt controllers in the core: 8259s, I/O APIC, local APIC and its timer, MSIs, IPIs."""

from __future__ import annotations

import pytest
from tests.conformance.engine.guests import APIC, Build, Guest

from sublet.core import InvalidError

IOAPIC = 0xFEC0_0000
SPURIOUS, EOI, ICR_LOW, LVT_TIMER, INITIAL_COUNT, CURRENT_COUNT, DIVIDE = (
    0xF0,
    0xB0,
    0x300,
    0x320,
    0x380,
    0x390,
    0x3E0,
)
"""Registers of the local APIC (Intel SDM vol. 3A §12.4.1 "The Local APIC Block Diagram")."""
PERIODIC, TSC_DEADLINE, MASKED, LEVEL = 1 << 17, 2 << 17, 1 << 16, 1 << 15
VECTOR = 0x40

ENABLE = f"mov ebx, {APIC:#x}; mov dword ptr [rbx + {SPURIOUS}], 0x1ff;"
HANDLER = f"mov dword ptr [rbx + {EOI}], 0; out 0x81, al; iretq"
WAIT = "sti; wait: hlt; out 0x82, al; jmp wait"

PIC = """
    mov al, 0x11; out 0x20, al; out 0xa0, al
    mov al, 0x40; out 0x21, al; mov al, 0x48; out 0xa1, al
    mov al, 4; out 0x21, al; mov al, 2; out 0xa1, al
    mov al, 1; out 0x21, al; out 0xa1, al
    mov al, 0; out 0x21, al; out 0xa1, al
"""
"""Vectors 0x40 and 0x48, cascade on 2, nothing masked (Intel 8259A "Programming the 8259A")."""


def redirect(pin: int, entry: int) -> str:
    """Mask the 8259s and program an I/O APIC pin (Intel 82093AA §3.2.4 "I/O Redirection Table Registers")."""
    return f"""
        mov al, 0xff; out 0x21, al; out 0xa1, al
        mov ecx, {IOAPIC:#x}
        mov dword ptr [rcx], {0x11 + 2 * pin}; mov dword ptr [rcx + 0x10], 0
        mov dword ptr [rcx], {0x10 + 2 * pin}; mov dword ptr [rcx + 0x10], {entry}
    """


def built_for_vector(build: Build, source: str, handler: str = HANDLER, vector: int = VECTOR) -> Guest:
    """A guest whose gate ``vector`` is the handler."""
    guest = build(source, handler=handler)
    guest.set_gate(vector)
    return guest


@pytest.mark.parametrize("address", [0xFEE0_0000, 0xFEE0_1004, 0xFEEF_F000])
def test_an_msi_wakes_from_hlt(built_with_irqchip: Build, address: int) -> None:
    guest = built_for_vector(
        built_with_irqchip, ENABLE + f"mov dword ptr [rbx + 0xd0], 0x1000000; out 0x80, al; {WAIT}"
    )
    guest.out()
    guest.vm.signal_msi(address, VECTOR)
    guest.out(0x81)
    guest.out(0x82)


def test_an_msi_to_nobody_is_dropped(built_with_irqchip: Build) -> None:
    guest = built_for_vector(built_with_irqchip, ENABLE + "sti; nop; out 0x80, al; nop; out 0x82, al; hlt")
    guest.out()
    guest.vm.signal_msi(0xFEE0_7000, VECTOR)
    guest.out(0x82)


def test_an_interrupt_waits_for_sti(built_with_irqchip: Build) -> None:
    guest = built_for_vector(
        built_with_irqchip, ENABLE + "out 0x80, al; nop; out 0x83, al; sti; spin: jmp spin"
    )
    guest.out()
    guest.vm.signal_msi(APIC, VECTOR)
    guest.out(0x83)
    guest.out(0x81)


def test_higher_vectors_come_first(built_with_irqchip: Build) -> None:
    handler = f"mov dword ptr [rbx + {EOI}], 0; out 0x84, al; iretq"
    guest = built_for_vector(built_with_irqchip, ENABLE + "out 0x80, al; sti; spin: jmp spin", handler, 0x91)
    guest.out()
    guest.vm.signal_msi(APIC, 0x31)
    guest.vm.signal_msi(APIC, 0x91)
    guest.out(0x84)
    assert guest.fault().vector == 0x31


@pytest.mark.parametrize("gsi", [1, 4, 10, 15])
def test_a_line_reaches_the_pic(built_with_irqchip: Build, gsi: int) -> None:
    vector = 0x40 + gsi
    source = PIC + ENABLE + "mov dword ptr [rbx + 0x350], 0x700; out 0x80, al; sti; spin: jmp spin"
    guest = built_for_vector(built_with_irqchip, source, "out 0x84, al; hlt", vector)
    guest.out()
    guest.vm.set_irq_line(gsi, True)
    guest.out(0x84)


@pytest.mark.parametrize("gsi", [1, 4, 20, 23])
def test_an_edge_reaches_the_io_apic(built_with_irqchip: Build, gsi: int) -> None:
    guest = built_for_vector(built_with_irqchip, ENABLE + redirect(gsi, VECTOR) + "out 0x80, al;" + WAIT)
    guest.out()
    guest.vm.set_irq_line(gsi, True)
    guest.out(0x81)
    guest.out(0x82)
    guest.vm.set_irq_line(gsi, False)
    guest.vm.set_irq_line(gsi, True)
    guest.out(0x81)


@pytest.mark.needs_hardware("it delivers a level once more after it fell")
def test_a_level_repeats_until_it_falls(built_with_irqchip: Build) -> None:
    source = ENABLE + redirect(20, VECTOR | LEVEL) + "out 0x80, al; sti; wait: hlt; jmp wait"
    handler = f"out 0x81, al; mov dword ptr [rbx + {EOI}], 0; iretq"
    guest = built_for_vector(built_with_irqchip, source, handler)
    guest.out()
    guest.vm.set_irq_line(20, True)
    guest.out(0x81)
    guest.out(0x81)
    guest.vm.set_irq_line(20, False)
    guest.interrupt_later()
    guest.expect_interrupted()


def test_a_masked_pin_stays_silent(built_with_irqchip: Build) -> None:
    source = ENABLE + redirect(20, VECTOR | MASKED) + "sti; out 0x80, al; nop; out 0x82, al; hlt"
    guest = built_for_vector(built_with_irqchip, source)
    guest.out()
    guest.vm.set_irq_line(20, True)
    guest.out(0x82)


def test_gsi_0_is_pin_2_and_the_8254_drives_it(built_with_irqchip: Build) -> None:
    pit = "mov al, 0x34; out 0x43, al; mov al, 0x50; out 0x40, al; mov al, 9; out 0x40, al;"
    source = ENABLE + redirect(2, VECTOR) + pit + "sti; wait: hlt; jmp wait"
    guest = built_for_vector(built_with_irqchip, source)
    for _ in range(3):
        guest.out(0x81)


def test_the_timer_fires_once(built_with_irqchip: Build) -> None:
    source = (
        ENABLE
        + f"""
        mov dword ptr [rbx + {DIVIDE}], 0xb; mov dword ptr [rbx + {LVT_TIMER}], {VECTOR}
        mov dword ptr [rbx + {INITIAL_COUNT}], 100000
        sti; hlt; mov eax, [rbx + {CURRENT_COUNT}]; out 0x80, eax; hlt"""
    )
    guest = built_for_vector(built_with_irqchip, source)
    guest.out(0x81)
    assert guest.out() == 0


def test_the_timer_repeats(built_with_irqchip: Build) -> None:
    source = f"""{ENABLE}
        mov dword ptr [rbx + {DIVIDE}], 0xb; mov dword ptr [rbx + {LVT_TIMER}], {VECTOR | PERIODIC}
        mov dword ptr [rbx + {INITIAL_COUNT}], 1000000
        sti; wait: hlt; jmp wait"""
    guest = built_for_vector(built_with_irqchip, source)
    for _ in range(3):
        guest.out(0x81)


def test_the_timer_at_a_tsc_deadline(built_with_irqchip: Build) -> None:
    source = (
        ENABLE
        + f"""
        mov dword ptr [rbx + {LVT_TIMER}], {VECTOR | TSC_DEADLINE}
        rdtsc; add eax, 1000000; adc edx, 0; mov ecx, 0x6e0; wrmsr
        sti; hlt; mov ecx, 0x6e0; rdmsr; or eax, edx; out 0x80, eax; hlt"""
    )
    guest = built_for_vector(built_with_irqchip, source)
    guest.out(0x81)
    assert guest.out() == 0


@pytest.mark.parametrize("command", [0x4_0000 | VECTOR, 0x8_0000 | VECTOR, VECTOR])
def test_an_ipi_to_oneself(built_with_irqchip: Build, command: int) -> None:
    source = ENABLE + f"mov dword ptr [rbx + 0x310], 0; mov dword ptr [rbx + {ICR_LOW}], {command}; {WAIT}"
    guest = built_for_vector(built_with_irqchip, source)
    guest.out(0x81)


def test_x2apic(built_with_irqchip: Build) -> None:
    source = f"""
        mov ecx, 0x1b; rdmsr; or eax, 0xc00; wrmsr
        mov ecx, 0x80f; mov eax, 0x1ff; xor edx, edx; wrmsr
        mov ecx, 0x83f; mov eax, {VECTOR}; wrmsr
        {WAIT}"""
    handler = "mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr; mov ecx, 0x802; rdmsr; out 0x81, eax; iretq"
    guest = built_for_vector(built_with_irqchip, source, handler)
    assert guest.out(0x81) == 0
    guest.out(0x82)


def test_the_task_priority_holds_interrupts_back(built_with_irqchip: Build) -> None:
    source = (
        ENABLE
        + "mov eax, 5; mov cr8, rax; out 0x80, al; sti; nop; out 0x83, al;"
        + "xor eax, eax; mov cr8, rax; spin: jmp spin"
    )
    guest = built_for_vector(built_with_irqchip, source)
    guest.out()
    assert guest.cr("cr8") == 5
    guest.vm.signal_msi(APIC, VECTOR)
    guest.out(0x83)
    guest.out(0x81)


def test_an_nmi_by_msi(built_with_irqchip: Build) -> None:
    guest = built_for_vector(
        built_with_irqchip, ENABLE + "out 0x80, al; spin: jmp spin", "out 0x84, al; hlt", 2
    )
    guest.out()
    guest.vm.signal_msi(APIC, 0x400)
    guest.out(0x84)


def test_apic_accesses_never_leave(built_with_irqchip: Build) -> None:
    source = ENABLE + f"mov eax, [rbx + 0x20]; mov ecx, {IOAPIC:#x}; mov eax, [rcx]; out 0x80, al; hlt"
    built_with_irqchip(source).out()


def test_a_vm_without_controllers_refuses_lines_and_msis(vm: Guest) -> None:
    with pytest.raises(InvalidError):
        vm.vm.set_irq_line(4, True)
    with pytest.raises(InvalidError):
        vm.vm.signal_msi(APIC, VECTOR)


def test_a_second_set_of_controllers_is_refused(irqchip_vm: Guest) -> None:
    with pytest.raises(InvalidError):
        irqchip_vm.vm.create_irqchip()
