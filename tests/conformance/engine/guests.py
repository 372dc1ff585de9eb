"""Tiny guests: assembled from text, laid out in memory with tables, and followed exit by exit.

The layout is one for all tests. Everything is mapped to itself:

    0x1000   page tables            0x10000   code (`CODE`), the handler at `HANDLER`
    0x5000   GDT                    0x18000   stubs, one an exception vector
    0x6000   IDT                    0x20000   data (`DATA`)
    0x7000   TSS                    0x200000  2 MiB that user mode may use (`USER`)
    0x9000   stack                  0xd0000000  no memory (`MMIO`)
    0xb000   interrupt stack (IST1)
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from sublet.core import (
    EXIT_INTERNAL_ERROR,
    EXIT_INTERRUPTED,
    EXIT_PIO_IN,
    EXIT_PIO_OUT,
    Engine,
    Exit,
    GuestMemory,
    RamBlock,
    Vcpu,
    Vm,
)

RAM_SIZE: Final = 4 << 20
PML4, PDPT, PD_LOW, PD_HIGH = 0x1000, 0x2000, 0x3000, 0x4000
GDT, IDT, TSS, STACK, IST1 = 0x5000, 0x6000, 0x7000, 0x9000, 0xB000
CODE, HANDLER, STUBS, DATA, TABLES = 0x10000, 0x10800, 0x18000, 0x20000, 0x30000
USER, USER_STACK = 0x200000, 0x2F0000
MMIO: Final = 0xD000_0000
APIC: Final = 0xFEE0_0000

CODE32, DATA32, CODE64, USER_CODE32, USER_DATA, USER_CODE64, TSS_SELECTOR = (
    0x08,
    0x10,
    0x18,
    0x20,
    0x28,
    0x30,
    0x38,
)
"""GDT selectors, in the order that SYSCALL and SYSRET want (Intel SDM vol. 2B "SYSRET")."""

PRESENT, WRITABLE, USER_PAGE, ACCESSED, DIRTY, HUGE, NX = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
"""Bits of a page-table entry (Intel SDM vol. 3A §4.5 "4-Level Paging and 5-Level Paging")."""

CR0_LONG, CR4_LONG, EFER_LONG = 0x8005_0033, 0x6A0, 0xD01
"""CR0: PG AM WP NE ET MP PE. CR4: PAE PGE OSFXSR OSXMMEXCPT. EFER: NXE LMA LME SCE."""

ERROR_CODE_VECTORS: Final = frozenset({8, 10, 11, 12, 13, 14, 17})
FAULT_PORT: Final = 0xE0
WATCHDOG_S: Final = 10.0


@cache
def assemble(source: str, origin: int = CODE, bits: int = 64) -> bytes:
    """Machine code of Intel-syntax assembly that runs at ``origin``."""
    text = f".intel_syntax noprefix\n.code{bits}\n.globl _start\n_start:\n{source}\n"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "guest.bin"
        link = f"-Wl,--oformat=binary,--build-id=none,-Ttext={origin:#x},-z,noexecstack"
        command = ["cc", "-nostdlib", "-static", "-no-pie", link, "-x", "assembler", "-", "-o", str(output)]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return output.read_bytes()


def segment(selector: int, attributes: int) -> tuple[int, int, int, int]:
    """A flat segment register; attributes are bits 40 to 55 of the descriptor."""
    return (selector, 0, 0xFFFF_FFFF, attributes)


def _descriptor(base: int, limit: int, attributes: int) -> int:
    """A segment descriptor (Intel SDM vol. 3A §3.4.5 "Segment Descriptors")."""
    low = limit & 0xFFFF | (base & 0xFFFFFF) << 16 | (attributes & 0xFF) << 40
    return low | (limit >> 16 & 0xF) << 48 | (attributes >> 12) << 52 | (base >> 24 & 0xFF) << 56


def _write_tables(memory: GuestMemory) -> None:
    table = PRESENT | WRITABLE | USER_PAGE
    memory.write_u64(PML4, PDPT | table)
    for index, directory in ((0, PD_LOW), (3, PD_HIGH)):
        memory.write_u64(PDPT + 8 * index, directory | table)
        base = index << 30
        entries = [base + (page << 21) | PRESENT | WRITABLE | HUGE for page in range(512)]
        memory.write(directory, struct.pack("<512Q", *entries))
    memory.write_u64(PD_LOW + 8, USER | HUGE | table)
    flat = [
        0,
        _descriptor(0, 0xFFFFF, 0xC09B),
        _descriptor(0, 0xFFFFF, 0xC093),
        _descriptor(0, 0xFFFFF, 0xA09B),
        _descriptor(0, 0xFFFFF, 0xC0FB),
        _descriptor(0, 0xFFFFF, 0xC0F3),
        _descriptor(0, 0xFFFFF, 0xA0FB),
        _descriptor(TSS, 0x67, 0x008B),
        0,
    ]
    memory.write(GDT, struct.pack("<9Q", *flat))
    memory.write(TSS + 4, struct.pack("<Q", STACK))
    memory.write(TSS + 0x24, struct.pack("<Q", IST1))
    memory.write(TSS + 0x66, struct.pack("<H", 0x68))


_STUB: Final = bytes((0xE6, FAULT_PORT, 0xF4, 0x90))
"""`out FAULT_PORT, al; hlt; nop`: which vector it was, the stub's address says."""


def gate(handler: int, *, ist: int = 0, dpl: int = 0) -> bytes:
    """A 64-bit interrupt gate (Intel SDM vol. 3A §6.14.1 "64-Bit Mode IDT")."""
    attributes = 0x8E | dpl << 5
    return struct.pack("<HHBBHII", handler & 0xFFFF, CODE64, ist, attributes, handler >> 16 & 0xFFFF, 0, 0)


@dataclass(frozen=True)
class Fault:
    """What an exception's handler finds on its stack."""

    vector: int
    error_code: int | None
    rip: int
    cs: int
    rflags: int
    rsp: int
    handler_rsp: int


class Guest:
    """A VM of one vCPU in 64-bit mode at CPL 0, interrupts off, ready at its first instruction."""

    def __init__(
        self, engine: Engine, *, irqchip: bool = False, timers: bool = False, emulated: bool = False
    ) -> None:
        self.engine = engine
        self.emulated = emulated
        self.vm: Vm = engine.create_vm()
        self.ram = RamBlock(RAM_SIZE)
        self.vm.set_memslot(0, 0, RAM_SIZE, self.ram)
        if irqchip:
            self.vm.create_irqchip()
        if timers:
            self.vm.add_platform_timers()
        self.memory = self.vm.memory
        self.vcpu: Vcpu = self.vm.create_vcpu(0)

    def load(self, source: str, *, handler: str = "hlt", user: str = "") -> Guest:
        """Write tables and code, and put the vCPU at the code's start."""
        _write_tables(self.memory)
        self.memory.write(STUBS, _STUB * 256)
        self.memory.write(IDT, b"".join(gate(STUBS + 4 * vector) for vector in range(256)))
        self.memory.write(CODE, assemble(source))
        self.memory.write(HANDLER, assemble(handler, HANDLER))
        if user:
            self.memory.write(USER, assemble(user, USER))
        self.enter_long_mode()
        return self

    def enter_long_mode(self) -> None:
        """64-bit mode, CPL 0, flat, interrupts off."""
        data = segment(DATA32, 0xC093)
        self.vcpu.set_sregs(
            cr0=CR0_LONG,
            cr3=PML4,
            cr4=CR4_LONG,
            efer=EFER_LONG,
            gdt=(GDT, 71),
            idt=(IDT, 4095),
            cs=segment(CODE64, 0xA09B),
            tr=(TSS_SELECTOR, TSS, 0x67, 0x008B),
            **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
        )
        self.vcpu.set_regs(rip=CODE, rsp=STACK, rflags=2)

    def enter_protected_mode(self, source: str) -> Guest:
        """32-bit protected mode, flat, paging off."""
        _write_tables(self.memory)
        self.memory.write(CODE, assemble(source, CODE, 32))
        data = segment(DATA32, 0xC093)
        self.vcpu.set_sregs(
            cr0=0x11,
            gdt=(GDT, 71),
            cs=segment(CODE32, 0xC09B),
            **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
        )
        self.vcpu.set_regs(rip=CODE, rsp=STACK, rflags=2)
        return self

    def set_gate(self, vector: int, handler: int = HANDLER, *, ist: int = 0, dpl: int = 0) -> None:
        """Point an interrupt vector somewhere else than to its stub."""
        self.memory.write(IDT + 16 * vector, gate(handler, ist=ist, dpl=dpl))

    def map_page(self, gva: int, entry: int) -> None:
        """Map one 4 KiB page of the 2 MiB at ``gva`` (the rest of them unmapped) by its entry."""
        directory = PD_LOW + 8 * (gva >> 21)
        table = TABLES + 0x1000 * (gva >> 21 & 0xF)
        self.memory.write_u64(directory, table | PRESENT | WRITABLE | USER_PAGE)
        self.memory.write_u64(table + 8 * (gva >> 12 & 0x1FF), entry)

    @contextmanager
    def _watchdog(self) -> Iterator[threading.Event]:
        """Kick a guest that runs for too long."""
        fired = threading.Event()

        def kick() -> None:
            fired.set()
            self.vcpu.kick()

        timer = threading.Timer(WATCHDOG_S, kick)
        timer.start()
        try:
            yield fired
        finally:
            timer.cancel()

    def run(self) -> Exit:
        """The next exit. A guest that never stops fails the test."""
        with self._watchdog() as fired:
            exit = self.vcpu.run()
        if fired.is_set():
            pytest.fail(f"the guest did not stop: {self.vcpu.get_regs()}")
        if exit.reason == EXIT_INTERNAL_ERROR and self.emulated:
            pytest.xfail(f"this host's KVM emulates each instruction, and not this one ({exit.data:#x})")
        return exit

    def out(self, port: int = 0x80) -> int:
        """Run to an OUT to ``port``; its data."""
        exit = self.run()
        assert (exit.reason, exit.port) == (EXIT_PIO_OUT, port), self.describe(exit)
        return exit.data

    def outs(self, count: int, port: int = 0x80) -> list[int]:
        """The data of ``count`` OUTs to ``port``."""
        return [self.out(port) for _ in range(count)]

    def answer(self, port: int, value: int) -> int:
        """Run to an IN from ``port`` and answer it; its size."""
        exit = self.run()
        assert (exit.reason, exit.port) == (EXIT_PIO_IN, port), self.describe(exit)
        self.vcpu.complete_read(value)
        return exit.size

    def expect(self, reason: int) -> Exit:
        """Run to an exit of this reason."""
        exit = self.run()
        assert exit.reason == reason, self.describe(exit)
        return exit

    def describe(self, exit: Exit) -> str:
        """The exit, and the exception that it may stand for."""
        if exit.reason == EXIT_PIO_OUT and exit.port == FAULT_PORT:
            return f"{self._fault()} cr2={self.vcpu.get_sregs()['cr2']:#x}"
        return repr(exit)

    def fault(self) -> Fault:
        """Run to an exception that goes to its stub."""
        self.out(FAULT_PORT)
        return self._fault()

    def _fault(self) -> Fault:
        regs = self.vcpu.get_regs()
        vector, rest = divmod(regs["rip"] - STUBS, 4)
        assert rest == 2, f"the stub's OUT left RIP at {regs['rip']:#x}"
        at = regs["rsp"]
        error_code = None
        if vector in ERROR_CODE_VECTORS:
            error_code, at = self.memory.read_u64(at), at + 8
        rip, cs, rflags, rsp, _ss = struct.unpack("<5Q", self.memory.read(at, 40))
        return Fault(vector, error_code, rip, cs, rflags, rsp, regs["rsp"])

    def regs(self) -> Mapping[str, int]:
        """The general registers."""
        return self.vcpu.get_regs()

    def cr(self, name: str) -> int:
        """A control register."""
        value = self.vcpu.get_sregs()[name]
        assert isinstance(value, int)
        return value

    def interrupt_later(self) -> threading.Timer:
        """Kick the vCPU from another thread, soon."""
        timer = threading.Timer(0.05, self.vcpu.kick)
        timer.start()
        return timer

    def expect_interrupted(self) -> None:
        """Run until the kick."""
        self.expect(EXIT_INTERRUPTED)


Build = Callable[..., Guest]
"""Makes a guest of its source; `handler` and `user` are the code at `HANDLER` and `USER`."""
