"""HLT, interrupts, their window and NMIs where the machine has the interrupt controller."""

from __future__ import annotations

import pytest
from tests.conformance.engine.guests import CODE, STACK, Build

from sublet.core import EXIT_HLT, EXIT_INTERRUPT_WINDOW, InvalidError

REPORT = "out 0x81, al; iretq"


def test_hlt_leaves_and_the_next_run_goes_on(built: Build) -> None:
    guest = built("hlt; mov al, 7; out 0x80, al; hlt")
    guest.expect(EXIT_HLT)
    assert guest.regs()["rip"] == CODE + 1
    assert guest.out() == 7


def test_an_interrupt_wakes_from_hlt(built: Build) -> None:
    guest = built("sti; hlt; mov al, 9; out 0x80, al; hlt", handler="mov al, 5; " + REPORT)
    guest.set_gate(0x40)
    guest.expect(EXIT_HLT)
    assert guest.vcpu.ready_for_interrupt()
    guest.vcpu.inject_interrupt(0x40)
    assert guest.out(0x81) == 5
    assert guest.out() == 9


def test_an_injected_interrupt_pushes_what_it_interrupted(built: Build) -> None:
    guest = built("sti; nop; out 0x80, al; hlt")
    guest.out()
    guest.vcpu.inject_interrupt(0x40)
    fault = guest.fault()
    assert (fault.vector, fault.rip, fault.rsp) == (0x40, CODE + 4, STACK)
    assert fault.rflags & 0x200
    assert not guest.regs()["rflags"] & 0x200


def test_injection_is_refused_while_interrupts_are_off(built: Build) -> None:
    guest = built("out 0x80, al; hlt")
    guest.out()
    assert not guest.vcpu.ready_for_interrupt()
    with pytest.raises(InvalidError):
        guest.vcpu.inject_interrupt(0x40)


def test_injection_is_refused_twice(built: Build) -> None:
    guest = built("sti; nop; out 0x80, al; hlt")
    guest.out()
    guest.vcpu.inject_interrupt(0x40)
    assert not guest.vcpu.ready_for_interrupt()
    with pytest.raises(InvalidError):
        guest.vcpu.inject_interrupt(0x41)


def test_the_window_opens_after_sti(built: Build) -> None:
    guest = built("out 0x80, al; sti; nop; spin: jmp spin")
    guest.out()
    guest.vcpu.request_interrupt_window(True)
    guest.expect(EXIT_INTERRUPT_WINDOW)
    assert guest.regs()["rip"] >= CODE + 4
    assert guest.vcpu.ready_for_interrupt()
    guest.vcpu.inject_interrupt(0x40)
    assert guest.fault().vector == 0x40


def test_the_window_opens_after_popf(built: Build) -> None:
    guest = built("push 0x202; popfq; spin: jmp spin")
    guest.vcpu.request_interrupt_window(True)
    guest.expect(EXIT_INTERRUPT_WINDOW)
    assert guest.regs()["rip"] == CODE + 6


def test_an_open_window_leaves_at_once_and_a_withdrawn_one_never(built: Build) -> None:
    guest = built("sti; nop; out 0x80, al; out 0x82, al; hlt")
    guest.out()
    guest.vcpu.request_interrupt_window(True)
    guest.expect(EXIT_INTERRUPT_WINDOW)
    guest.vcpu.request_interrupt_window(False)
    guest.out(0x82)


def test_a_window_while_spinning(built: Build) -> None:
    guest = built("out 0x80, al; mov ecx, 1000; again: dec ecx; jnz again; sti; spin: jmp spin")
    guest.out()
    guest.vcpu.request_interrupt_window(True)
    guest.expect(EXIT_INTERRUPT_WINDOW)


def test_mov_ss_holds_interrupts_off_for_one_instruction(built: Build) -> None:
    guest = built("mov eax, ss; out 0x80, al; sti; mov ss, eax; nop; spin: jmp spin")
    guest.out()
    guest.vcpu.request_interrupt_window(True)
    guest.expect(EXIT_INTERRUPT_WINDOW)
    assert guest.regs()["rip"] >= CODE + 8


@pytest.mark.needs_hardware("its IRETQ does not end the masking of NMIs")
def test_an_nmi_comes_with_interrupts_off_and_masks_others(built: Build) -> None:
    source = "out 0x80, al; nop; mov al, 9; out 0x80, al; hlt"
    guest = built(source, handler="mov al, 2; out 0x81, al; nop; out 0x82, al; iretq")
    guest.set_gate(2)
    guest.out()
    guest.vcpu.inject_nmi()
    assert guest.out(0x81) == 2
    assert guest.vcpu.get_events()["nmi_masked"]
    guest.vcpu.inject_nmi()
    guest.out(0x82)
    assert guest.out(0x81) == 2
    guest.out(0x82)
    assert guest.out() == 9
    assert not guest.vcpu.get_events()["nmi_masked"]


def test_an_nmi_wakes_from_hlt(built: Build) -> None:
    guest = built("hlt; mov al, 9; out 0x80, al; hlt", handler="mov al, 2; " + REPORT)
    guest.set_gate(2)
    guest.expect(EXIT_HLT)
    guest.vcpu.inject_nmi()
    assert guest.out(0x81) == 2
    assert guest.out() == 9


def test_events_can_be_put_back(built: Build) -> None:
    guest = built("out 0x80, al; hlt")
    guest.out()
    guest.vcpu.set_events(nmi_masked=True)
    guest.vcpu.inject_nmi()
    guest.expect(EXIT_HLT)
    guest.vcpu.set_events(nmi_masked=False)
    assert guest.fault().vector == 2
