"""Interruption of `run` from another thread."""

from __future__ import annotations

import threading

from tests.conformance.engine.guests import MMIO, Build

from sublet.core import EXIT_INTERRUPTED, EXIT_PIO_OUT


def test_a_spinning_guest_with_interrupts_off(built: Build) -> None:
    guest = built("cli; spin: jmp spin")
    guest.interrupt_later()
    guest.expect_interrupted()


def test_a_guest_that_spins_through_calls(built: Build) -> None:
    guest = built("spin: call one; jmp spin; one: lea rax, [rip + two]; jmp rax; two: ret")
    guest.interrupt_later()
    guest.expect_interrupted()


def test_a_guest_in_an_endless_string_instruction(built: Build) -> None:
    guest = built("again: lea rsi, [0x20000]; mov rcx, -1; rep lodsb; jmp again")
    guest.map_page(0x200000, 0)
    guest.vcpu.set_regs(rflags=2)
    guest.interrupt_later()
    # The load runs into the unmapped page soon; the stub's OUT is as good an end.
    assert guest.run().reason in (EXIT_INTERRUPTED, EXIT_PIO_OUT)


def test_a_guest_that_faults_forever(built: Build) -> None:
    guest = built("ud2", handler="iretq")
    guest.set_gate(6)
    guest.interrupt_later()
    guest.expect_interrupted()


def test_a_kick_before_run_counts_for_the_next_run_only(built: Build) -> None:
    guest = built("out 0x80, al; out 0x81, al; hlt")
    guest.vcpu.kick()
    guest.vcpu.kick()
    guest.expect_interrupted()
    guest.out()
    guest.out(0x81)


def test_a_kick_loses_no_answer(built: Build) -> None:
    guest = built(f"mov ebx, {MMIO:#x}; mov eax, [rbx]; out 0x80, eax; hlt")
    guest.run()
    guest.vcpu.complete_read(0x1234)
    guest.vcpu.kick()
    guest.expect_interrupted()
    assert guest.out() == 0x1234


def test_the_guest_goes_on_where_it_was(built: Build) -> None:
    guest = built("xor eax, eax; spin: inc rax; cmp byte ptr [0x20000], 0; je spin; out 0x80, al; hlt")
    guest.interrupt_later()
    guest.expect_interrupted()
    assert guest.regs()["rax"] > 0
    guest.memory.write(0x20000, b"\x01")
    guest.out()


def test_hlt_with_an_irqchip_waits_inside_run(built_with_irqchip: Build) -> None:
    guest = built_with_irqchip("sti; hlt; hlt")
    guest.interrupt_later()
    guest.expect_interrupted()
    assert guest.vcpu.get_events()["halted"]


def test_kicks_from_many_threads_end(built: Build) -> None:
    guest = built("spin: jmp spin")
    threads = [threading.Thread(target=guest.vcpu.kick) for _ in range(8)]
    for thread in threads:
        thread.start()
    guest.expect_interrupted()
    for thread in threads:
        thread.join()


def test_run_on_another_thread(built: Build) -> None:
    guest = built("mov al, 4; out 0x80, al; hlt")
    data: list[int] = []
    thread = threading.Thread(target=lambda: data.append(guest.out()))
    thread.start()
    thread.join()
    assert data == [4]
