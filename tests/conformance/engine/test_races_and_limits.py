"""Easily missed: slots and code that change under a running guest, windows of one instruction."""

from __future__ import annotations

import pytest
from tests.conformance.engine.guests import APIC, CODE, DATA, MMIO, Build, assemble
from tests.conformance.engine.test_concurrency import soon
from tests.conformance.engine.test_exceptions import ENTER_USER
from tests.conformance.engine.test_irqchip import ENABLE, VECTOR, built_for_vector

from sublet.core import EXIT_INTERRUPT_WINDOW, EXIT_MMIO_READ, RamBlock


def test_alignment_check_in_user_mode(built: Build) -> None:
    enter = "mov rax, cr0; bts rax, 18; mov cr0, rax; " + ENTER_USER.replace("0x3002", "0x43002")
    fault = built(enter, user="mov eax, [0x210001]; hlt").fault()
    assert (fault.vector, fault.error_code) == (17, 0)


@pytest.mark.needs_hardware("it looks for interrupts between runs of instructions only")
def test_a_window_of_one_instruction_is_found(built: Build) -> None:
    guest = built("again: cli; nop; sti; nop; cli; jmp again")
    guest.vcpu.request_interrupt_window(True)
    guest.expect(EXIT_INTERRUPT_WINDOW)
    guest.vcpu.inject_interrupt(0x40)
    assert guest.fault().rip == CODE + 4


def test_code_in_a_replaced_slot_is_the_new_code(built: Build) -> None:
    guest = built(f"mov ebx, {MMIO:#x}; again: call rbx; out 0x80, al; jmp again")
    for value in (1, 2):
        ram = RamBlock(0x1000)
        guest.vm.set_memslot(1, MMIO, 0x1000, ram)
        guest.memory.write(MMIO, assemble(f"mov al, {value}; ret", MMIO))
        assert guest.out() == value


def test_an_interrupt_comes_when_interrupts_are_on_for_one_instruction(built_with_irqchip: Build) -> None:
    source = ENABLE + "out 0x80, al; again: cli; nop; sti; nop; cli; jmp again"
    guest = built_for_vector(built_with_irqchip, source)
    guest.out()
    guest.vm.signal_msi(APIC, VECTOR)
    guest.out(0x81)


SPIN_ON_MMIO = f"mov ebx, {MMIO:#x}; again: mov eax, [rbx]; jmp again"


def test_a_slot_is_removed_under_a_running_guest(built: Build) -> None:
    guest = built(SPIN_ON_MMIO)
    guest.vm.set_memslot(1, MMIO, 0x1000, RamBlock(0x1000))
    soon(lambda: guest.vm.remove_memslot(1))
    assert guest.expect(EXIT_MMIO_READ).address == MMIO


def test_slots_that_change_together_leave_no_hole(built: Build) -> None:
    """As where firmware makes its own memory read-only while another processor runs there."""
    guest = built(f"mov ebx, {MMIO:#x}; jmp rbx", handler="out 0x81, al")
    ram = RamBlock(0x2000)
    guest.vm.set_memslot(1, MMIO, 0x2000, ram)
    guest.memory.write(MMIO, assemble(f"again: cmp byte ptr [{DATA}], 0; je again; out 0x80, al", MMIO))

    def change_and_stop() -> None:
        for attempt in range(100):
            halves = [
                (2, MMIO, 0x1000, ram, 0, True, False),
                (3, MMIO + 0x1000, 0x1000, ram, 0x1000, True, False),
            ]
            whole = [(1, MMIO, 0x2000, ram, 0, False, False)]
            guest.vm.change_memslots((2, 3) if attempt % 2 else (1,), whole if attempt % 2 else halves)
        guest.memory.write(DATA, b"\x01")

    soon(change_and_stop)
    guest.out()


def test_too_long_an_instruction(built: Build) -> None:
    assert built(".fill 15, 1, 0x66; nop; hlt").fault().vector == 13


@pytest.mark.parametrize("attempt", range(10))
def test_running_code_sees_device_stores_to_itself(built: Build, attempt: int) -> None:
    guest = built("again: mov al, 1; cmp al, 1; je again; out 0x80, al; hlt")
    soon(lambda: guest.memory.write(CODE + 1, b"\x05"))
    assert guest.out() == 5
