"""What other threads do while the guest runs."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.conformance.engine.guests import APIC, DATA, MMIO, Build
from tests.conformance.engine.test_irqchip import ENABLE, VECTOR, built_for_vector, redirect

from sublet.core import RamBlock


def soon(action: Callable[[], None]) -> None:
    """Do it on another thread while the guest runs."""
    threading.Timer(0.05, action).start()


def test_an_msi_reaches_a_spinning_guest(built_with_irqchip: Build) -> None:
    guest = built_for_vector(built_with_irqchip, ENABLE + "sti; spin: jmp spin")
    soon(lambda: guest.vm.signal_msi(APIC, VECTOR))
    guest.out(0x81)


def test_an_msi_wakes_a_halted_guest(built_with_irqchip: Build) -> None:
    guest = built_for_vector(built_with_irqchip, ENABLE + "sti; hlt; out 0x82, al; hlt")
    soon(lambda: guest.vm.signal_msi(APIC, VECTOR))
    guest.out(0x81)
    guest.out(0x82)


def test_a_line_reaches_a_spinning_guest(built_with_irqchip: Build) -> None:
    guest = built_for_vector(built_with_irqchip, ENABLE + redirect(20, VECTOR) + "sti; spin: jmp spin")
    soon(lambda: guest.vm.set_irq_line(20, True))
    guest.out(0x81)


def test_a_running_guest_sees_device_stores(built: Build) -> None:
    guest = built(f"again: cmp byte ptr [{DATA}], 0; je again; out 0x80, al; hlt")
    soon(lambda: guest.memory.write(DATA, b"\x01"))
    guest.out()


def test_the_dirty_log_is_taken_under_a_running_guest(built: Build) -> None:
    guest = built(
        f"mov ebx, {MMIO:#x}; again: inc dword ptr [rbx]; cmp byte ptr [{DATA}], 0; je again; out 0x80, al"
    )
    guest.vm.set_memslot(1, MMIO, 0x1000, RamBlock(0x1000), log_dirty=True)

    def see_it_dirty_again_and_again() -> None:
        for _ in range(3):
            while not guest.vm.take_dirty_log(1)[0] and not ended.is_set():
                ended.wait(0.001)
        guest.memory.write(DATA, b"\x01")

    ended = threading.Event()
    soon(see_it_dirty_again_and_again)
    try:
        guest.out()
    finally:
        ended.set()
