"""A machine's life, on an engine that plays back exits."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.machine.images import Elf

from sublet import engine as core
from sublet.block import RawImage
from sublet.errors import CorruptImage, HostRefused, InternalError, UsageError
from sublet.machine import DiskConfig, MachineConfig, MachineResult, run, run_machine
from sublet.machine import memory_map as mm
from sublet.machine.control import Control, Request
from sublet.machine.power_cycle import PowerCycle
from sublet.machine.screen import Screen
from sublet.testing.fake_engine import FakeEngine, FakeExit, Script


class RecordingConsole:
    """Keeps what the guest wrote; ``on_start`` acts as the user."""

    def __init__(self) -> None:
        self.output = b""
        self.started = 0
        self.stopped = 0
        self.on_input: Callable[[bytes], int] | None = None

    def write(self, data: bytes) -> None:
        self.output += data

    def start(self, on_input: Callable[[bytes], int]) -> None:
        self.started += 1
        self.on_input = on_input

    def show(self, screen: Screen | None) -> None:
        assert screen is None  # a microvm

    def stop(self) -> None:
        self.stopped += 1


def out(port: int, value: int, size: int = 1) -> FakeExit:
    return FakeExit(core.EXIT_PIO_OUT, port=port, size=size, data=value)


def print_text(text: str) -> list[FakeExit]:
    return [out(mm.COM1_PORT, byte) for byte in text.encode()]


POWER_OFF = [out(mm.PM1_CONTROL_PORT, 5 << 10 | 1 << 13, 2)]
RESET = [out(mm.RESET_PORT, 0x06)]
PANIC = [out(mm.PVPANIC_PORT, 1)]
TRIPLE_FAULT = [FakeExit(core.EXIT_SHUTDOWN)]


def script(*boots: list[FakeExit]) -> Script:
    """Exits of each boot; the last one repeats."""
    remaining = list(boots)
    return lambda: iter(remaining.pop(0) if len(remaining) > 1 else remaining[0])


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(Elf().build())
    return MachineConfig(kernel=kernel, memory_mib=4, cmdline="console=ttyS0")


@pytest.fixture
def console() -> RecordingConsole:
    return RecordingConsole()


Run = Callable[[Script | FakeEngine, MachineConfig], MachineResult]


@pytest.fixture
def run_on(monkeypatch: pytest.MonkeyPatch, console: RecordingConsole) -> Run:
    def go(exits: Script | FakeEngine, config: MachineConfig) -> MachineResult:
        fake = exits if isinstance(exits, FakeEngine) else FakeEngine(exits)
        monkeypatch.setattr(run, "open_engine", lambda choice: fake)
        return run_machine(config, console)

    return go


def test_output_reaches_the_console_and_poweroff_ends(
    run_on: Run, config: MachineConfig, console: RecordingConsole
) -> None:
    result = run_on(script(print_text("hello") + POWER_OFF), config)
    assert (result.exit_code, result.reason) == (0, "the guest powered off")
    assert console.output == b"hello"
    assert (console.started, console.stopped) == (1, 1)


@pytest.mark.parametrize(
    ("last", "code"), [(RESET, 80), (TRIPLE_FAULT, 81), (PANIC, 82)], ids=["reset", "triple fault", "panic"]
)
def test_other_ends_have_their_exit_codes(
    run_on: Run, config: MachineConfig, last: list[FakeExit], code: int
) -> None:
    assert run_on(script(last), replace(config, reboot=False)).exit_code == code


@pytest.mark.parametrize("last", [RESET, TRIPLE_FAULT], ids=["reset", "triple fault"])
def test_a_reset_boots_again_from_the_start(
    run_on: Run, config: MachineConfig, console: RecordingConsole, last: list[FakeExit]
) -> None:
    result = run_on(script(print_text("one ") + last, print_text("two") + POWER_OFF), config)
    assert result.exit_code == 0
    assert console.output == b"one two"
    assert console.started == 1
    assert result.statistics["machine.resets"] == 1
    assert result.statistics["vm.created"] == 2


def test_hundreds_of_resets_leave_no_threads_files_or_memory(run_on: Run, config: MachineConfig) -> None:
    boots = [RESET] * 200 + [POWER_OFF]
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    fake = FakeEngine(script(*boots))
    result = run_on(fake, config)
    assert result.statistics["machine.resets"] == 200
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files
    assert all(not vm.memory.slots() for vm in fake.vms)


def test_nothing_runs_after_the_exit_that_ended_the_machine(
    run_on: Run, config: MachineConfig, console: RecordingConsole
) -> None:
    run_on(script(POWER_OFF + print_text("too late")), config)
    assert console.output == b""


def test_reads_are_answered(run_on: Run, config: MachineConfig) -> None:
    reads = [
        FakeExit(core.EXIT_PIO_IN, port=mm.COM1_PORT + 5),
        FakeExit(core.EXIT_PIO_IN, port=0x60, size=4),
        FakeExit(core.EXIT_MMIO_READ, address=0xD000_0000, size=8),
        FakeExit(core.EXIT_MMIO_READ, address=mm.ECAM_BASE, size=2),
    ]
    fake = FakeEngine(script(reads + POWER_OFF))
    run_on(fake, config)
    assert fake.vms[0].vcpus[0].reads == [0x60, 0xFFFF_FFFF, (1 << 64) - 1, 0x1B36]


def test_boot_processor_is_where_the_kernel_starts(run_on: Run, config: MachineConfig) -> None:
    fake = FakeEngine(script(POWER_OFF))
    run_on(fake, replace(config, cpus=2))
    first, second = fake.vms[0].vcpus
    assert first.regs["rip"] == 0x10_0000
    assert "cr0" not in second.sregs
    assert [v.cpuid[1][4] >> 24 for v in (first, second)] == [0, 1]


def test_statistics_count_exits_by_reason(run_on: Run, config: MachineConfig) -> None:
    statistics = run_on(script(print_text("abc") + POWER_OFF), config).statistics
    assert statistics["exits.pio_out"] == 4
    assert statistics["vcpu.boots"] == 1


def test_unknown_hypercalls_fail_in_the_guest(run_on: Run, config: MachineConfig) -> None:
    fake = FakeEngine(script([FakeExit(core.EXIT_HYPERCALL, data=77), *POWER_OFF]))
    run_on(fake, config)
    assert fake.vms[0].vcpus[0].regs["rax"] == (1 << 64) - 1000


def test_an_engine_that_cannot_continue_is_an_internal_error(
    run_on: Run, config: MachineConfig, console: RecordingConsole
) -> None:
    with pytest.raises(InternalError, match="0x11"):
        run_on(script([FakeExit(core.EXIT_INTERNAL_ERROR, data=0x11)]), config)
    assert console.stopped == 1


HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["interrupt", "hang-up"])
def test_signals_leave(run_on: Run, config: MachineConfig, number: int) -> None:
    handlers = [signal.getsignal(handled) for handled in HANDLED]

    def boot() -> Iterator[FakeExit]:
        os.kill(os.getpid(), number)
        yield from ()

    assert run_on(boot, config).exit_code == 130
    assert [signal.getsignal(handled) for handled in HANDLED] == handlers


def press_power_button(fake: FakeEngine) -> Iterator[FakeExit]:
    """Send SIGTERM and read the PM1 status until the guest would see PWRBTN_STS."""
    vcpu = fake.vms[0].vcpus[0]
    os.kill(os.getpid(), signal.SIGTERM)
    while not vcpu.reads or not vcpu.reads[-1] & 1 << 8:
        yield FakeExit(core.EXIT_PIO_IN, port=mm.PM1_EVENT_PORT, size=2)


@pytest.mark.parametrize("obeys", [True, False])
def test_sigterm_presses_the_power_button_and_a_second_one_leaves(
    run_on: Run, config: MachineConfig, obeys: bool
) -> None:
    def boot() -> Iterator[FakeExit]:
        yield from press_power_button(fake)
        if obeys:
            yield from POWER_OFF
        os.kill(os.getpid(), signal.SIGTERM)

    fake = FakeEngine(boot)
    assert run_on(fake, config).exit_code == (0 if obeys else 130)


def test_a_guest_that_ignores_the_power_button_is_stopped(
    run_on: Run, config: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boot() -> Iterator[FakeExit]:
        yield from press_power_button(fake)
        while True:
            yield FakeExit(core.EXIT_INTERRUPTED)

    monkeypatch.setattr(run, "POWER_BUTTON_LIMIT_S", 0.01)
    fake = FakeEngine(boot)
    assert run_on(fake, config).exit_code == 130


def test_a_guest_that_resets_when_told_to_end_is_stopped(run_on: Run, config: MachineConfig) -> None:
    def boot() -> Iterator[FakeExit]:
        if len(fake.vms) == 1:
            yield from press_power_button(fake)
        yield from RESET

    fake = FakeEngine(boot)
    assert run_on(fake, config).exit_code == 130
    assert len(fake.vms) == 1


class CycleWithButton:
    """As much of a power cycle as counts how often its button is pressed."""

    def __init__(self) -> None:
        self.board, self.presses = self, 0

    def press_power_button(self) -> None:
        self.presses += 1


def test_a_guest_that_sleeps_when_told_to_end_is_stopped() -> None:
    control, cycle = Control(), CycleWithButton()
    control.post(Request.POWER_BUTTON)
    control.post(Request.SUSPEND)
    assert run._wait_for_end(cast(PowerCycle, cycle), control, told=False) is Request.LEFT
    assert cycle.presses == 1


@pytest.mark.parametrize("again", [Request.SUSPEND, Request.RESET])
def test_a_guest_woken_to_end_is_stopped_if_it_starts_again(again: Request) -> None:
    control = Control()
    control.post(again)
    cycle = cast(PowerCycle, CycleWithButton())
    assert run._wait_for_end(cycle, control, told=True) is Request.LEFT


def test_a_guest_woken_to_end_is_told_so_and_then_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WAKING_S", 0.01)
    monkeypatch.setattr(run, "POWER_BUTTON_LIMIT_S", 0.01)
    cycle = CycleWithButton()
    assert run._wait_for_end(cast(PowerCycle, cycle), Control(), told=True) is Request.LEFT
    assert cycle.presses == 1


def test_input_reaches_the_guest(run_on: Run, config: MachineConfig, console: RecordingConsole) -> None:
    def boot() -> Iterator[FakeExit]:
        vcpu = fake.vms[0].vcpus[0]
        assert console.on_input is not None
        while not console.on_input(b"x"):
            yield FakeExit(core.EXIT_INTERRUPTED)
        while ord("x") not in vcpu.reads:
            yield FakeExit(core.EXIT_PIO_IN, port=mm.COM1_PORT)
        yield from POWER_OFF

    fake = FakeEngine(boot)
    assert run_on(fake, config).exit_code == 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"memory_mib": 0}, UsageError),
        ({"memory_mib": 10**6 * 1000}, HostRefused),
        ({"cpus": 0}, UsageError),
        ({"cpus": 65}, UsageError),
        ({"kernel": Path("/nonexistent/kernel")}, UsageError),
        ({"kernel": Path("/dev/null")}, UsageError),
    ],
)
def test_bad_definitions_end_before_the_console_starts(
    run_on: Run,
    config: MachineConfig,
    console: RecordingConsole,
    change: dict[str, Any],
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        run_on(script(POWER_OFF), replace(config, **change))
    assert console.started == 0


def test_a_kernel_that_breaks_between_boots_ends_the_run(run_on: Run, config: MachineConfig) -> None:
    def boot() -> Iterator[FakeExit]:
        config.kernel.write_bytes(b"")
        return iter(RESET)

    with pytest.raises(CorruptImage):
        run_on(boot, config)


def test_disks_and_cards_get_pci_slots(run_on: Run, config: MachineConfig, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(4096))
    reads = [
        FakeExit(core.EXIT_MMIO_READ, address=mm.ECAM_BASE + (slot << 15), size=4) for slot in range(1, 6)
    ]
    fake = FakeEngine(script(reads + POWER_OFF))
    disks = (DiskConfig(path=disk),)
    run_on(fake, replace(config, disks=disks, net=("none",)))
    rng, console, card, block, nothing = (value >> 16 for value in fake.vms[0].vcpus[0].reads)
    assert (rng, console, card, block, nothing) == (0x1044, 0x1043, 0x1041, 0x1042, 0xFFFF)
    RawImage(disk).close()


@pytest.mark.parametrize(
    ("net", "error"),
    [(("bridge:br0",), UsageError), (("unix:/nonexistent",), HostRefused), (("none",) * 40, UsageError)],
)
def test_bad_networks_are_refused(
    run_on: Run, config: MachineConfig, net: tuple[str, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        run_on(script(POWER_OFF), replace(config, net=net))


def test_one_disk_cannot_be_attached_twice(run_on: Run, config: MachineConfig, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(4096))
    with pytest.raises(HostRefused, match="in use"):
        run_on(script(POWER_OFF), replace(config, disks=(DiskConfig(path=disk),) * 2))
    RawImage(disk).close()
