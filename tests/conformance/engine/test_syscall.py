"""SYSCALL, SYSRET, SWAPGS, compatibility mode and hypercalls."""

from __future__ import annotations

import pytest
from tests.conformance.engine.guests import (
    CODE,
    CODE64,
    DATA,
    HANDLER,
    STACK,
    USER,
    USER_CODE32,
    USER_CODE64,
    USER_DATA,
    USER_STACK,
    Build,
    Guest,
    assemble,
)

from sublet.core import EXIT_HYPERCALL

STAR, LSTAR, CSTAR, FMASK, FS_BASE, GS_BASE, KERNEL_GS_BASE = (
    0xC0000081,
    0xC0000082,
    0xC0000083,
    0xC0000084,
    0xC0000100,
    0xC0000101,
    0xC0000102,
)
TO_USER = f"mov ecx, {USER}; mov r11d, 0x3202; mov rsp, {USER_STACK}; sysretq"


def with_syscalls(guest: Guest) -> Guest:
    """SYSCALL enters at ``HANDLER`` with interrupts off."""
    star = (USER_CODE32 | 3) << 48 | CODE64 << 32
    guest.vcpu.set_msrs([(STAR, star), (LSTAR, HANDLER), (FMASK, 0x200)])
    return guest


@pytest.mark.needs_hardware("its SYSCALL stays in user mode")
def test_syscall_saves_and_masks(built: Build) -> None:
    guest = with_syscalls(built(TO_USER, user="syscall; hlt", handler="out 0x80, al; hlt"))
    guest.out()
    regs, sregs = guest.regs(), guest.vcpu.get_sregs()
    assert (regs["rcx"], regs["r11"], regs["rsp"]) == (USER + 2, 0x3202, USER_STACK)
    assert regs["rflags"] == 0x3002
    cs = sregs["cs"]
    assert isinstance(cs, tuple)
    assert cs[0] == CODE64


@pytest.mark.needs_hardware("it loses IOPL")
def test_sysret_enters_user_mode(built: Build) -> None:
    guest = with_syscalls(built(TO_USER, user="mov eax, cs; out 0x80, eax; mov eax, ss; out 0x80, eax; hlt"))
    assert guest.outs(2) == [USER_CODE64 | 3, USER_DATA | 3]


@pytest.mark.needs_hardware("its SYSCALL stays in user mode")
def test_a_system_call_and_back(built: Build) -> None:
    user = "mov eax, 5; syscall; out 0x80, eax; hlt"
    guest = with_syscalls(built(TO_USER, user=user, handler="add eax, 2; sysretq"))
    assert guest.out() == 7


def test_syscall_without_sce_is_undefined(built: Build) -> None:
    guest = with_syscalls(built("syscall"))
    guest.vcpu.set_sregs(efer=0xD00)
    assert guest.fault().vector == 6


def test_swapgs(built: Build) -> None:
    guest = built("swapgs; mov eax, gs:[0]; out 0x80, eax; swapgs; mov eax, gs:[0]; out 0x80, eax; hlt")
    guest.vcpu.set_msrs([(GS_BASE, DATA), (KERNEL_GS_BASE, DATA + 8)])
    guest.memory.write(DATA, b"\x01\0\0\0\0\0\0\0\x02\0\0\0")
    assert guest.outs(2) == [2, 1]


def test_fs_base(built: Build) -> None:
    guest = built("mov eax, fs:[4]; out 0x80, eax; hlt")
    guest.vcpu.set_msrs([(FS_BASE, DATA)])
    guest.memory.write_u32(DATA + 4, 0x66)
    assert guest.out() == 0x66


@pytest.mark.needs_hardware("it loses IOPL")
def test_compatibility_mode(built: Build) -> None:
    enter = (
        f"push {USER_DATA | 3}; push {USER_STACK}; push 0x3002; push {USER_CODE32 | 3}; push {USER}; iretq"
    )
    guest = built(enter)
    guest.memory.write(
        USER,
        assemble("mov ax, 0x2b; mov ds, ax; inc eax; dec eax; push 7; pop eax; out 0x80, eax; hlt", USER, 32),
    )
    assert guest.out() == 7


def test_a_fault_in_compatibility_mode_enters_64_bit_mode(built: Build) -> None:
    enter = (
        f"push {USER_DATA | 3}; push {USER_STACK}; push 0x3002; push {USER_CODE32 | 3}; push {USER}; iretq"
    )
    guest = built(enter, user="ud2")
    fault = guest.fault()
    assert (fault.vector, fault.cs, fault.rip, fault.handler_rsp) == (6, USER_CODE32 | 3, USER, STACK - 40)


def test_far_return(built: Build) -> None:
    guest = built(
        f"push {CODE64}; lea rax, [rip + there]; push rax; retfq; hlt; there: mov al, 1; out 0x80, al; hlt"
    )
    assert guest.out() == 1


@pytest.mark.needs_hardware("its hypercalls never end", run=False)
@pytest.mark.parametrize("instruction", ["vmcall", "vmmcall"])
def test_a_hypercall_is_answered_or_leaves(built: Build, instruction: str) -> None:
    """KVM answers those it does not know with -1000 (KVM_ENOSYS); the translator leaves."""
    guest = built(f"mov eax, 0x1234; mov ebx, 1; mov ecx, 2; {instruction}; out 0x80, eax; hlt")
    exit = guest.run()
    if exit.reason == EXIT_HYPERCALL:
        assert exit.data == 0x1234
        exit = guest.run()
    assert exit.port == 0x80
    assert guest.regs()["rip"] >= CODE
