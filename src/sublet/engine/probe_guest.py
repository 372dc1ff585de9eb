"""A guest of a few dozen instructions that uses what a kernel needs; run as a program, it reports stages.

``python -m sublet.engine.probe_guest ENGINE`` prints the name of each stage (``kvm_probe.STAGES``)
that the guest has passed and exits 0 after the last, 1 with a sentence on standard error otherwise.
"""

from __future__ import annotations

import signal
import struct
import sys
from typing import Final

from sublet.core import (
    EXIT_MMIO_READ,
    EXIT_MMIO_WRITE,
    EXIT_PIO_OUT,
    Engine,
    Exit,
    GuestMemory,
    RamBlock,
    Vcpu,
    Vm,
)
from sublet.errors import InternalError, SubletError

_RAM_SIZE: Final = 2 << 20
_PML4, _PDPT, _PD_LOW, _PD_HIGH = 0x1000, 0x2000, 0x3000, 0x4000
_GDT, _IDT, _STACK_TOP, _CODE = 0x5000, 0x6000, 0x9000, 0x10000
_CODE32, _DATA, _CODE64 = 0x08, 0x10, 0x18
_VECTOR: Final = 0x40
_MSI_ADDRESS: Final = 0xFEE0_0000
"""To the local APIC with ID 0, physical destination, fixed delivery (Intel SDM vol. 3A §11.11)."""
_MMIO: Final = 0xD000_0000
_MMIO_VALUE: Final = 0x5AFE_C0DE
_WATCHDOG_S: Final = 10

_PROGRAM: Final = bytes.fromhex(
    # 32-bit protected mode, paging off: turn on PAE, EFER.LME and paging, go to 64-bit code
    "0f20e0"  # mov eax, cr4
    "83c820"  # or eax, 0x20 (PAE)
    "0f22e0"  # mov cr4, eax
    "b800100000"  # mov eax, 0x1000 (PML4)
    "0f22d8"  # mov cr3, eax
    "b9800000c0"  # mov ecx, 0xc0000080 (EFER)
    "0f32"  # rdmsr
    "0d00010000"  # or eax, 0x100 (LME)
    "0f30"  # wrmsr
    "0f20c0"  # mov eax, cr0
    "0d00000080"  # or eax, 0x80000000 (PG)
    "0f22c0"  # mov cr0, eax
    "ea310001001800"  # jmp 0x18:0x10031
    # 64-bit mode
    "b04c"  # mov al, 'L'
    "e610"  # out 0x10, al
    "bf000000d0"  # mov edi, 0xd0000000
    "c7074d000000"  # mov dword [rdi], 0x4d
    "8b4704"  # mov eax, [rdi + 4]
    "e711"  # out 0x11, eax
    "bff000e0fe"  # mov edi, 0xfee000f0 (spurious-interrupt vector register)
    "c707ff010000"  # mov dword [rdi], 0x1ff (enable the local APIC)
    "b048"  # mov al, 'H'
    "e610"  # out 0x10, al
    "fb"  # sti
    "f4"  # hlt
    "b057"  # mov al, 'W'
    "e610"  # out 0x10, al
    "b940787d01"  # mov ecx, 25000000
    "ffc9"  # again: dec ecx
    "75fc"  # jnz again
    "b045"  # mov al, 'E'
    "e610"  # out 0x10, al
    "f4"  # hlt
    # the interrupt handler
    "b049"  # mov al, 'I'
    "e610"  # out 0x10, al
    "bfb000e0fe"  # mov edi, 0xfee000b0 (EOI)
    "c70700000000"  # mov dword [rdi], 0
    "48cf"  # iretq
)
_HANDLER: Final = _CODE + 0x68


def _page_tables() -> list[tuple[int, bytes]]:
    """Identity mapping, 2 MiB pages, of the first 2 MiB and of 3 to 4 GiB (MMIO and the local APIC)."""
    present, huge = 0x3, 0x83
    high = b"".join(struct.pack("<Q", (3 << 30) + (index << 21) | huge) for index in range(512))
    return [
        (_PML4, struct.pack("<Q", _PDPT | present)),
        (_PDPT, struct.pack("<4Q", _PD_LOW | present, 0, 0, _PD_HIGH | present)),
        (_PD_LOW, struct.pack("<Q", huge)),
        (_PD_HIGH, high),
    ]


def _descriptor_tables() -> list[tuple[int, bytes]]:
    """Flat segments, and one 64-bit interrupt gate (Intel SDM vol. 3A §6.14.1 "64-Bit Mode IDT")."""
    gdt = struct.pack("<4Q", 0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00AF_9B00_0000_FFFF)
    gate = struct.pack("<HHBBHII", _HANDLER & 0xFFFF, _CODE64, 0, 0x8E, _HANDLER >> 16, 0, 0)
    return [(_GDT, gdt), (_IDT + 16 * _VECTOR, gate)]


def _load(memory: GuestMemory) -> None:
    for gpa, data in [*_page_tables(), *_descriptor_tables(), (_CODE, _PROGRAM)]:
        memory.write(gpa, data)


def _start(vcpu: Vcpu) -> None:
    """32-bit protected mode, flat, interrupts off, at the program's first instruction."""
    data = (_DATA, 0, 0xFFFF_FFFF, 0xC093)
    vcpu.set_sregs(
        cr0=0x11,
        gdt=(_GDT, 31),
        idt=(_IDT, 16 * 256 - 1),
        cs=(_CODE32, 0, 0xFFFF_FFFF, 0xC09B),
        **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
    )
    vcpu.set_regs(rip=_CODE, rsp=_STACK_TOP, rflags=2)


def _expect(exit: Exit, reason: int, where: int, value: int | None = None) -> None:
    at = exit.port if reason == EXIT_PIO_OUT else exit.address
    if (exit.reason, at) != (reason, where) or (value is not None and exit.data != value):
        raise InternalError(f"the probe guest left with {exit!r}")


def _pass(stage: str) -> None:
    print(stage, flush=True)


def run_probe_guest(engine_name: str) -> None:
    """Run the guest to its end, printing stages.

    Raises:
        SubletError: The engine failed, or the guest did something else than it should.
    """
    engine = Engine(engine_name)
    vm = engine.create_vm()
    vm.set_memslot(0, 0, _RAM_SIZE, RamBlock(_RAM_SIZE))
    vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    vcpu.set_cpuid(engine.supported_cpuid())
    _load(vm.memory)
    _start(vcpu)
    _pass("open")
    _follow(vm, vcpu)


def _follow(vm: Vm, vcpu: Vcpu) -> None:
    _expect(vcpu.run(), EXIT_PIO_OUT, 0x10, ord("L"))
    _pass("long-mode")
    _expect(vcpu.run(), EXIT_MMIO_WRITE, _MMIO, 0x4D)
    _expect(vcpu.run(), EXIT_MMIO_READ, _MMIO + 4)
    vcpu.complete_read(_MMIO_VALUE)
    _expect(vcpu.run(), EXIT_PIO_OUT, 0x11, _MMIO_VALUE)
    _pass("mmio")
    _expect(vcpu.run(), EXIT_PIO_OUT, 0x10, ord("H"))
    vm.signal_msi(_MSI_ADDRESS, _VECTOR)
    _expect(vcpu.run(), EXIT_PIO_OUT, 0x10, ord("I"))
    _expect(vcpu.run(), EXIT_PIO_OUT, 0x10, ord("W"))
    _pass("hlt")
    _expect(vcpu.run(), EXIT_PIO_OUT, 0x10, ord("E"))
    _pass("speed")


def main(arguments: list[str]) -> int:
    """Run the guest on the engine named; the exit status says whether it passed every stage."""
    signal.alarm(_WATCHDOG_S)  # should the parent die, do not outlive it for long
    try:
        run_probe_guest(arguments[0])
    except SubletError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
