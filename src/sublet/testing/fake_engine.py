"""An engine that runs no guest: each vCPU plays back a script of exits.

Shaped like the core's classes (``_native.pyi``), as far as the machine uses them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sublet.core import EXIT_INTERRUPTED, EXIT_MMIO_READ, EXIT_PIO_IN
from sublet.errors import GuestError


@dataclass
class FakeExit:
    """One exit; fields as ``Exit``'s."""

    reason: int
    port: int = 0
    address: int = 0
    size: int = 1
    data: int = 0
    args: tuple[int, int, int, int] = (0, 0, 0, 0)


Script = Callable[[], Iterator[FakeExit]]
"""Makes the exits of one boot, in order; when they run out, the vCPU idles until it is kicked."""


class FakeVmMemory:
    """Guest RAM in host memory, grown by `FakeVm.set_memslot`. Raises `GuestError` outside it."""

    def __init__(self) -> None:
        self._slots: dict[int, tuple[int, bytearray]] = {}

    def set_slot(self, slot: int, gpa: int, size: int) -> None:
        """Put ``size`` zero bytes at ``gpa``."""
        self._slots[slot] = (gpa, bytearray(size))

    def remove_slot(self, slot: int) -> None:
        """Take a slot away."""
        del self._slots[slot]

    def slots(self) -> list[tuple[int, int, int, bool]]:
        """As ``GuestMemory.slots``."""
        return [(slot, gpa, len(ram), False) for slot, (gpa, ram) in self._slots.items()]

    def _locate(self, gpa: int, size: int) -> tuple[bytearray, int]:
        for start, ram in self._slots.values():
            if start <= gpa and gpa + size <= start + len(ram):
                return ram, gpa - start
        raise GuestError(f"{size} bytes at {gpa:#x} are not RAM")

    def read(self, gpa: int, size: int) -> bytes:
        """As ``GuestMemory.read``."""
        ram, offset = self._locate(gpa, size)
        return bytes(ram[offset : offset + size])

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """As ``GuestMemory.write``."""
        ram, offset = self._locate(gpa, len(data))
        ram[offset : offset + len(data)] = data

    def read_u16(self, gpa: int) -> int:
        """As ``GuestMemory.read_u16``."""
        return int.from_bytes(self.read(gpa, 2), "little")

    def read_u32(self, gpa: int) -> int:
        """As ``GuestMemory.read_u32``."""
        return int.from_bytes(self.read(gpa, 4), "little")

    def read_u64(self, gpa: int) -> int:
        """As ``GuestMemory.read_u64``."""
        return int.from_bytes(self.read(gpa, 8), "little")

    def write_u16(self, gpa: int, value: int) -> None:
        """As ``GuestMemory.write_u16``."""
        self.write(gpa, value.to_bytes(2, "little"))

    def write_u32(self, gpa: int, value: int) -> None:
        """As ``GuestMemory.write_u32``."""
        self.write(gpa, value.to_bytes(4, "little"))

    def write_u64(self, gpa: int, value: int) -> None:
        """As ``GuestMemory.write_u64``."""
        self.write(gpa, value.to_bytes(8, "little"))


_GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")


class FakeVcpu:
    """Plays a script. ``reads`` records what `complete_read` got, in order."""

    def __init__(self, exits: Iterator[FakeExit]) -> None:
        self._exits = exits
        self._kicked = threading.Event()
        self._awaits_read = False
        self.reads: list[int] = []
        self.regs: dict[str, int] = dict.fromkeys(
            (*_GPRS, *(f"r{i}" for i in range(8, 16)), "rip", "rflags"), 0
        )
        self.sregs: dict[str, object] = {"apic_base": 0xFEE00900}
        self.cpuid: list[tuple[int, int, bool, int, int, int, int]] = []
        self.msrs: dict[int, int] = {}

    def run(self) -> FakeExit:
        """The next exit of the script; after its end, waits for `kick`."""
        if self._kicked.is_set():
            self._kicked.clear()
            return FakeExit(EXIT_INTERRUPTED)
        exit_ = next(self._exits, None)
        if exit_ is None:
            self._kicked.wait()
            self._kicked.clear()
            return FakeExit(EXIT_INTERRUPTED)
        self._awaits_read = exit_.reason in (EXIT_PIO_IN, EXIT_MMIO_READ)
        return exit_

    def start_profile(self, hertz: int) -> None:
        """Nothing: no guest runs."""

    def take_profile(self) -> list[tuple[int, int, int, bool, int]]:
        """No samples."""
        return []

    def complete_read(self, data: int) -> None:
        """Record the result of the last read exit; anything else is a bug of the caller's."""
        if not self._awaits_read:
            raise AssertionError("complete_read without a read exit")
        self._awaits_read = False
        self.reads.append(data)

    def kick(self) -> None:
        """As ``Vcpu.kick``."""
        self._kicked.set()

    def get_regs(self) -> dict[str, int]:
        """As ``Vcpu.get_regs``."""
        return dict(self.regs)

    def set_regs(self, **regs: int) -> None:
        """As ``Vcpu.set_regs``."""
        self.regs.update(regs)

    def get_sregs(self) -> dict[str, object]:
        """As ``Vcpu.get_sregs``."""
        return dict(self.sregs)

    def set_sregs(self, **sregs: object) -> None:
        """As ``Vcpu.set_sregs``."""
        self.sregs.update(sregs)

    def set_msrs(self, entries: Sequence[tuple[int, int]]) -> None:
        """As ``Vcpu.set_msrs``."""
        self.msrs.update(entries)

    def set_cpuid(self, entries: list[tuple[int, int, bool, int, int, int, int]]) -> None:
        """As ``Vcpu.set_cpuid``."""
        self.cpuid = list(entries)

    def statistics(self) -> dict[str, int]:
        """One counter, to see that counters are added up."""
        return {"vcpu.boots": 1}


class FakeVm:
    """Records interrupts; its vCPU 0 plays the engine's script, the others idle."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.memory = FakeVmMemory()
        self.irq_levels: list[tuple[int, bool]] = []
        self.messages: list[tuple[int, int]] = []
        self.vcpus: list[FakeVcpu] = []
        self.cmos: dict[int, int] = {}

    def set_memslot(
        self,
        slot: int,
        gpa: int,
        size: int,
        ram: Any,
        ram_offset: int = 0,
        *,
        readonly: bool = False,
        smm: bool = False,
    ) -> None:
        """As ``Vm.set_memslot``; the RAM is the fake's own, and always writable."""
        self.memory.set_slot(slot, gpa, size)

    def remove_memslot(self, slot: int) -> None:
        """As ``Vm.remove_memslot``."""
        self.memory.remove_slot(slot)

    def change_memslots(
        self, gone: Sequence[int], new: Sequence[tuple[int, int, int, Any, int, bool, bool]]
    ) -> None:
        """As ``Vm.change_memslots``; the RAM is the fake's own, and always writable."""
        for slot in gone:
            self.memory.remove_slot(slot)
        for slot, gpa, size, *_ in new:
            self.memory.set_slot(slot, gpa, size)

    def has_smm(self) -> bool:
        """It has no system-management mode."""
        return False

    def set_a20(self, open: bool) -> None:
        """There is no gate."""

    def create_irqchip(self) -> None:
        """Nothing to make."""

    def add_platform_timers(self) -> None:
        """Nothing to make."""

    def connect_legacy_timers(self, connected: bool) -> None:
        """There are none."""

    def offer_port_data(self, port: int, data: bytes) -> None:
        """Dropped: every read comes to the device."""

    def take_back_port_data(self, port: int) -> int:
        """Nothing was offered."""
        return 0

    def write_cmos(self, values: Sequence[tuple[int, int]]) -> None:
        """Record the bytes."""
        self.cmos.update(values)

    def read_cmos(self) -> bytes:
        """What was written, else zeroes."""
        return bytes(self.cmos.get(index, 0) for index in range(128))

    def set_irq_line(self, gsi: int, level: bool) -> None:
        """Record a change of level."""
        self.irq_levels.append((gsi, level))

    def signal_msi(self, address: int, data: int) -> None:
        """Record a message."""
        self.messages.append((address, data))

    def create_vcpu(self, index: int) -> FakeVcpu:
        """As ``Vm.create_vcpu``."""
        self.vcpus.append(FakeVcpu(self._script() if index == 0 else iter(())))
        return self.vcpus[-1]

    def statistics(self) -> dict[str, int]:
        """One counter, to see that counters are added up."""
        return {"vm.created": 1}


class FakeEngine:
    """As ``Engine``; ``vms`` has every VM that was made, in order."""

    def __init__(self, script: Script, name: str = "kvm") -> None:
        self._script = script
        self.name = name
        self.vms: list[FakeVm] = []

    def create_vm(self) -> FakeVm:
        """As ``Engine.create_vm``."""
        self.vms.append(FakeVm(self._script))
        return self.vms[-1]

    def supported_cpuid(self) -> list[tuple[int, int, bool, int, int, int, int]]:
        """Two leaves: the highest one, and the features."""
        return [(0, 0, False, 1, 0, 0, 0), (1, 0, False, 0, 0, 0, 0)]
