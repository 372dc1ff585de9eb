"""The RTC and the ACPI PM timer in the core: their ports never leave, their interrupt arrives."""

from __future__ import annotations

import pytest
from tests.conformance.engine.guests import DATA, Guest
from tests.conformance.engine.test_irqchip import ENABLE, EOI, VECTOR, redirect

from sublet.core import Engine, InvalidError


@pytest.fixture
def timers_vm(engine: Engine, emulated: bool) -> Guest:
    """A VM with interrupt controllers and platform timers in the core."""
    return Guest(engine, irqchip=True, timers=True, emulated=emulated)


def test_cmos_memory_keeps_what_is_written(timers_vm: Guest) -> None:
    guest = timers_vm.load(
        "mov al, 0x50; out 0x70, al; mov al, 0x77; out 0x71, al; in al, 0x71; out 0x80, al; hlt"
    )
    assert guest.out() == 0x77


def test_a_string_read_of_the_rtc_never_leaves(timers_vm: Guest) -> None:
    read = f"mov edx, 0x71; mov ecx, 3000; lea rdi, [{DATA}]; rep insb;"
    guest = timers_vm.load("mov al, 0xd; out 0x70, al;" + read + "out 0x80, al; hlt")
    guest.out()
    assert guest.memory.read(DATA, 3000) == b"\x80" * 3000


def test_the_pm_timer_goes_forward(timers_vm: Guest) -> None:
    source = """
        mov edx, 0x608; in eax, dx; mov ebx, eax; mov ecx, 1000
        again: in eax, dx; cmp eax, ebx; jne moved; dec ecx; jnz again
        moved: sub eax, ebx; out 0x80, eax; hlt"""
    assert 0 < timers_vm.load(source).out() < 1 << 31


def test_the_periodic_interrupt(timers_vm: Guest) -> None:
    source = f"""{ENABLE} {redirect(8, VECTOR)}
        mov al, 0xb; out 0x70, al; mov al, 0x42; out 0x71, al; sti; wait: hlt; jmp wait"""
    handler = f"mov al, 0xc; out 0x70, al; in al, 0x71; out 0x81, al; mov dword ptr [rbx + {EOI}], 0; iretq"
    guest = timers_vm.load(source, handler=handler)
    guest.set_gate(VECTOR)
    for _ in range(3):
        assert guest.out(0x81) & 0xC0 == 0xC0


def test_timers_need_controllers_and_come_once(engine: Engine) -> None:
    vm = engine.create_vm()
    with pytest.raises(InvalidError):
        vm.add_platform_timers()
    vm.create_irqchip()
    vm.add_platform_timers()
    with pytest.raises(InvalidError):
        vm.add_platform_timers()
