"""What one pass through ``Vcpu.run`` costs: into the guest, an exit for a device, back into Python.

Three guests of two instructions each, on every engine that this host has: a port written in a loop, a port
read, a word of a device in memory written. The promise is under 3 µs a pass on ``translate``; KVM stands
beside it.

    python benchmarks/exit_latency.py --passes 200000 --json result.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sublet.engine import EXIT_MMIO_WRITE, EXIT_PIO_IN, EXIT_PIO_OUT, Engine, RamBlock, Vcpu, Vm
from sublet.errors import SubletError

PROMISE_NS: Final = 3000
BATCHES: Final = 20
TIME_LIMIT_S: Final = 60
ENGINES: Final = ("translate", "kvm")

# Each is entered in 64-bit mode and never ends.
GUESTS: Final = {
    "port write": (EXIT_PIO_OUT, bytes.fromhex("e610 ebfc")),  # again: out 0x10, al; jmp again
    "port read": (EXIT_PIO_IN, bytes.fromhex("e410 ebfc")),  # again: in al, 0x10; jmp again
    # mov edi, 0xd0000000; again: mov [rdi], eax; jmp again
    "memory write": (EXIT_MMIO_WRITE, bytes.fromhex("bf000000d0 8907 ebfc")),
}

_RAM_SIZE: Final = 2 << 20
_PML4, _PDPT, _PD_LOW, _PD_HIGH, _CODE = 0x1000, 0x2000, 0x3000, 0x4000, 0x10000
_PRESENT: Final = 0x3
_HUGE: Final = 0x83
_EFER_LONG_MODE: Final = 0x500


class UnexpectedExit(Exception):
    """The guest left for another reason than its only one."""


def make_vcpu(engine: Engine, program: bytes) -> tuple[Vm, Vcpu]:
    """A vCPU at the start of ``program``, in 64-bit mode with 0-2 MiB and 3-4 GiB mapped to themselves."""
    vm = engine.create_vm()
    vm.set_memslot(0, 0, _RAM_SIZE, RamBlock(_RAM_SIZE))
    high = b"".join(struct.pack("<Q", (3 << 30) + (index << 21) | _HUGE) for index in range(512))
    vm.memory.write(_PML4, struct.pack("<Q", _PDPT | _PRESENT))
    vm.memory.write(_PDPT, struct.pack("<4Q", _PD_LOW | _PRESENT, 0, 0, _PD_HIGH | _PRESENT))
    vm.memory.write(_PD_LOW, struct.pack("<Q", _HUGE))
    vm.memory.write(_PD_HIGH, high)
    vm.memory.write(_CODE, program)
    vcpu = vm.create_vcpu(0)
    vcpu.set_cpuid(engine.supported_cpuid())
    data = (0x10, 0, 0xFFFF_FFFF, 0xC093)
    vcpu.set_sregs(
        cr0=0x8000_0011,
        cr3=_PML4,
        cr4=0x20,
        efer=_EFER_LONG_MODE,
        cs=(0x08, 0, 0xFFFF_FFFF, 0xA09B),
        **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
    )
    vcpu.set_regs(rip=_CODE, rsp=0x9000, rflags=2)
    return vm, vcpu


def time_passes(vcpu: Vcpu, reason: int, passes: int) -> float:
    """Nanoseconds a pass, of a run of ``passes``."""
    run, complete_read = vcpu.run, vcpu.complete_read
    start = time.perf_counter_ns()
    for _ in range(passes):
        left = run()
        if left.reason != reason:
            raise UnexpectedExit(f"the guest left with {left!r}")
        if reason == EXIT_PIO_IN:
            complete_read(0)
    return (time.perf_counter_ns() - start) / passes


def measure_guest(vcpu: Vcpu, reason: int, batch: int) -> list[float]:
    """Nanoseconds a pass in each batch; empty when the guest left otherwise, or not within the time limit."""
    timer = threading.Timer(TIME_LIMIT_S, vcpu.kick)
    timer.start()
    try:
        time_passes(vcpu, reason, batch)
        return [time_passes(vcpu, reason, batch) for _ in range(BATCHES)]
    except UnexpectedExit as error:
        print(f"problem: {error}")
        return []
    finally:
        timer.cancel()


def measure_engine(name: str, passes: int) -> dict[str, list[float]]:
    """Nanoseconds a pass in each batch, by guest; empty for a guest that does not leave as it should."""
    engine = Engine(name)
    times: dict[str, list[float]] = {}
    for guest, (reason, program) in GUESTS.items():
        vm, vcpu = make_vcpu(engine, program)
        times[guest] = measure_guest(vcpu, reason, max(1, passes // BATCHES))
        del vcpu, vm
    return times


def print_engine(name: str, times: dict[str, list[float]]) -> None:
    """One line a guest: median, best and worst batch."""
    for guest, values in times.items():
        if not values:
            continue
        figures = (statistics.median(values), min(values), max(values))
        print(f"{name:<12}{guest:<16}" + "".join(f"{value:>12.0f} ns" for value in figures))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every engine that can be used here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passes", type=int, default=100_000, help="passes for each guest (default 100000)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args(arguments)
    print(f"{'engine':<12}{'guest':<16}{'median':>15}{'best':>15}{'worst':>15}")
    result: dict[str, object] = {"promise_ns": PROMISE_NS}
    failed = False
    for name in ENGINES:
        try:
            times = measure_engine(name, options.passes)
        except SubletError as error:
            print(f"{name:<12}cannot be used here: {error.message}")
            continue
        print_engine(name, times)
        result[name] = times
        failed |= not all(times.values())
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
