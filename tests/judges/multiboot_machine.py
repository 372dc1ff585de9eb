"""A machine just large enough for kvm-unit-tests: RAM, in-core interrupt controllers, a serial port,
QEMU's exit and test devices, and the few fw_cfg items that the tests read.

The kernel is loaded and entered as Multiboot 0.6.96 §3.2 "Machine state" says.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sublet.core import (
    EXIT_HLT,
    EXIT_HYPERCALL,
    EXIT_INTERRUPTED,
    EXIT_MMIO_READ,
    EXIT_MMIO_WRITE,
    EXIT_PIO_IN,
    EXIT_PIO_OUT,
    EXIT_SHUTDOWN,
    EXIT_SYSTEM_RESET,
    Engine,
    Exit,
    GuestMemory,
    RamBlock,
    Vcpu,
    Vm,
)
from sublet.errors import SubletError
from sublet.machine.cpuid import CpuidEntry, for_vcpu

RAM_SIZE: Final = 128 << 20
_INFO, _COMMAND_LINE, _MAP, _GDT = 0x6000, 0x6200, 0x6400, 0x6800
_BOOTLOADER_MAGIC: Final = 0x2BADB002
_CODE32, _DATA32 = 0x08, 0x10
_GDT_ENTRIES: Final = struct.pack("<3Q", 0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)

_SERIAL: Final = range(0x3F8, 0x400)
_LINE_STATUS_IDLE: Final = 0x60
_TEST_DEVICE_SERIAL: Final = 0xF1
_DEBUG_EXIT: Final = range(0xF4, 0xF8)
_TEST_PORTS: Final = range(0xE0, 0xE4)
_TEST_BYTES: Final = range(0xE8, 0xEC)
_IRQ_LINES: Final = range(0x2000, 0x2018)
_FW_CFG_SELECTOR, _FW_CFG_DATA = 0x510, 0x511
_TEST_MEMORY: Final = range(0xFF00_0000, 0xFF01_0000)


@dataclass
class Outcome:
    """How a run ended: the exit code that the guest gave, or a word on why it gave none."""

    code: int | None
    why: str
    output: str
    seconds: float
    statistics: dict[str, int] = field(default_factory=dict)


def load_elf32(memory: GuestMemory, image: bytes) -> int:
    """Load the segments of a 32-bit ELF executable; returns its entry point."""
    entry, table = struct.unpack_from("<II", image, 24)
    size, count = struct.unpack_from("<HH", image, 42)
    for index in range(count):
        kind, offset, _, gpa, in_file, in_memory = struct.unpack_from("<6I", image, table + index * size)
        if kind == 1:
            memory.write(gpa, image[offset : offset + in_file] + bytes(in_memory - in_file))
    return int(entry)


class TestDevices:
    """What answers ports and physical addresses outside RAM."""

    def __init__(self, vm: Vm, cpus: int) -> None:
        self.vm = vm
        self.output = bytearray()
        self.exit_code: int | None = None
        self._test_ports = bytearray(4)
        self._test_bytes = bytearray(4)
        self._memory = bytearray(len(_TEST_MEMORY))
        self._serial = bytearray(8)
        self._items = {
            0x00: b"QEMU",
            0x01: struct.pack("<I", 1),
            0x03: struct.pack("<Q", RAM_SIZE),
            0x05: struct.pack("<H", cpus),
            0x0F: struct.pack("<H", cpus),
        }
        self._item = b""

    def port_out(self, port: int, size: int, data: int) -> None:
        """Carry out OUT."""
        value = data.to_bytes(8, "little")[:size]
        if port in (_SERIAL.start, _TEST_DEVICE_SERIAL):
            if port == _TEST_DEVICE_SERIAL or not self._serial[3] & 0x80:
                self.output += value
        elif port in _SERIAL:
            self._serial[port - _SERIAL.start] = value[0]
        elif port in _DEBUG_EXIT:
            self.exit_code = data
        elif port in _TEST_PORTS:
            start = port - _TEST_PORTS.start
            self._test_ports[start : start + size] = value
            del self._test_ports[len(_TEST_PORTS) :]
        elif port in _TEST_BYTES:
            self._test_bytes[port - _TEST_BYTES.start] = value[0]
        elif port in _IRQ_LINES:
            self.vm.set_irq_line(port - _IRQ_LINES.start, data & 1 != 0)
        elif port == _FW_CFG_SELECTOR:
            self._item = self._items.get(data & 0xFFFF, b"")

    def port_in(self, port: int, size: int) -> int:
        """Carry out IN; a port that nothing answers floats high."""
        if port == _SERIAL.start + 5:
            return _LINE_STATUS_IDLE
        if port in _SERIAL:
            return self._serial[port - _SERIAL.start]
        if port in _TEST_PORTS:
            start = port - _TEST_PORTS.start
            return int.from_bytes(self._test_ports[start : start + size], "little")
        if port in _TEST_BYTES:
            return self._test_bytes[port - _TEST_BYTES.start]
        if port == _FW_CFG_DATA:
            byte, self._item = self._item[:1] or b"\0", self._item[1:]
            return byte[0]
        return (1 << 8 * size) - 1

    def memory_write(self, gpa: int, size: int, data: int) -> None:
        """Store to an address outside RAM."""
        if gpa in _TEST_MEMORY:
            start = gpa - _TEST_MEMORY.start
            self._memory[start : start + size] = data.to_bytes(8, "little")[:size]

    def memory_read(self, gpa: int, size: int) -> int:
        """Load from an address outside RAM."""
        if gpa not in _TEST_MEMORY:
            return (1 << 8 * size) - 1
        start = gpa - _TEST_MEMORY.start
        return int.from_bytes(self._memory[start : start + size], "little")


class MultibootMachine:
    """One kernel image on one engine."""

    def __init__(self, engine: str, cpus: int, hide: Sequence[tuple[int, int, int]] = ()) -> None:
        """``hide``: CPUID bits to clear, as (leaf, index in EAX..EDX, mask)."""
        self._engine = Engine(engine)
        self.vm = self._engine.create_vm()
        self.vm.set_memslot(0, 0, RAM_SIZE, RamBlock(RAM_SIZE))
        self.vm.create_irqchip()
        self.vm.add_platform_timers()
        self.devices = TestDevices(self.vm, cpus)
        self.vcpus = [self.vm.create_vcpu(index) for index in range(cpus)]
        for index, vcpu in enumerate(self.vcpus):
            entries = for_vcpu(self._engine.supported_cpuid(), index, cpus)
            vcpu.set_cpuid([_hide(entry, hide) for entry in entries])
        self._why = ""
        self._done = threading.Event()

    def load(self, kernel: Path, arguments: str) -> None:
        """Load the kernel and put the first vCPU at its entry."""
        memory = self.vm.memory
        entry = load_elf32(memory, kernel.read_bytes())
        line = f"{kernel.name} {arguments}".strip().encode() + b"\0"
        ranges = [(0, 0x9FC00, 1), (0x9FC00, 0x400, 2), (0x100000, RAM_SIZE - 0x100000, 1)]
        memory_map = b"".join(struct.pack("<IQQI", 20, *entry) for entry in ranges)
        memory.write(_COMMAND_LINE, line)
        memory.write(_MAP, memory_map)
        memory.write(_GDT, _GDT_ENTRIES)
        info = [0] * 22
        info[0], info[1], info[2] = 1 | 4 | 64, 639, (RAM_SIZE >> 10) - 1024
        info[4], info[11], info[12] = _COMMAND_LINE, len(memory_map), _MAP
        memory.write(_INFO, struct.pack("<22I", *info))
        self._enter(entry)

    def _enter(self, entry: int) -> None:
        data = (_DATA32, 0, 0xFFFF_FFFF, 0xC093)
        vcpu = self.vcpus[0]
        vcpu.set_sregs(
            cr0=0x11,
            gdt=(_GDT, len(_GDT_ENTRIES) - 1),
            cs=(_CODE32, 0, 0xFFFF_FFFF, 0xC09B),
            **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
        )
        vcpu.set_regs(rip=entry, rax=_BOOTLOADER_MAGIC, rbx=_INFO, rflags=2)

    def run(self, limit_s: float) -> Outcome:
        """Run until the guest ends the test, or for ``limit_s`` seconds."""
        start = time.monotonic()
        threads = [threading.Thread(target=self._run_vcpu, args=(vcpu,)) for vcpu in self.vcpus]
        for thread in threads:
            thread.start()
        if not self._done.wait(limit_s):
            self._end("timeout")
        while any(thread.is_alive() for thread in threads):
            for vcpu in self.vcpus:
                vcpu.kick()
            time.sleep(0.01)
        output = self.devices.output.decode("utf-8", errors="replace")
        code = self.devices.exit_code
        return Outcome(code, self._why, output, time.monotonic() - start, self.vcpus[0].statistics())

    def _end(self, why: str) -> None:
        self._why = self._why or why
        self._done.set()

    def _run_vcpu(self, vcpu: Vcpu) -> None:
        try:
            while not self._done.is_set():
                self._serve(vcpu, vcpu.run())
        except SubletError as error:
            self._end(f"error: {error.message}")

    def _serve(self, vcpu: Vcpu, exit: Exit) -> None:
        devices = self.devices
        if exit.reason == EXIT_PIO_OUT:
            devices.port_out(exit.port, exit.size, exit.data)
            if devices.exit_code is not None:
                self._end("exit")
        elif exit.reason == EXIT_PIO_IN:
            vcpu.complete_read(devices.port_in(exit.port, exit.size))
        elif exit.reason == EXIT_MMIO_READ:
            vcpu.complete_read(devices.memory_read(exit.address, exit.size))
        elif exit.reason == EXIT_MMIO_WRITE:
            devices.memory_write(exit.address, exit.size, exit.data)
        elif exit.reason == EXIT_SHUTDOWN:
            self._end("triple fault")
        elif exit.reason == EXIT_SYSTEM_RESET:
            self._end("reset")
        elif exit.reason not in (EXIT_INTERRUPTED, EXIT_HLT, EXIT_HYPERCALL):
            self._end(f"exit {exit!r}")


def _hide(entry: CpuidEntry, bits: Sequence[tuple[int, int, int]]) -> CpuidEntry:
    leaf, subleaf, has_subleaf, *registers = entry
    for hidden, register, mask in bits:
        if leaf == hidden and subleaf == 0:
            registers[register] &= ~mask
    eax, ebx, ecx, edx = registers
    return leaf, subleaf, has_subleaf, eax, ebx, ecx, edx
