"""Guests that misbehave: a defined end with its exit code, never a traceback, never unbounded memory."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from tests.guests import kernels
from tests.guests.code_fuzz import code_fuzz
from tests.guests.conftest import StartGuest
from tests.guests.fuzzed_machine import fuzz_machine
from tests.guests.register_fuzz import register_fuzz
from tests.integration.guest import Guest
from tests.integration.test_firmware import needs_bios, needs_uefi

pytestmark = pytest.mark.guest

RESIDENT_LIMIT_KIB = 512 * 1024
DEFINED_ENDS = {0, 80, 81, 82, 130}
CODE_FUZZ_S = 5.0
FIRMWARE_FUZZ_S = 4.0


def boot(start_guest: StartGuest, directory: Path, source: str, *flags: str) -> Guest:
    kernel = kernels.write_kernel(directory, source)
    machine = ("--kernel", str(kernel), "--memory", "16M", "--engine", "translate", "--stats=json")
    return start_guest(*machine, *flags, stdin=False)


def peak_kib(guest: Guest) -> int:
    """The most that the process had resident so far."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{guest.process.pid}/status").read_text())
    assert match is not None
    return int(match.group(1))


def statistics(guest: Guest) -> dict[str, int]:
    counters: dict[str, int] = json.loads(guest.errors.decode().splitlines()[-1])
    return counters


def wait_until_started(guest: Guest) -> None:
    """Wait for a guest that prints a dot when it runs."""
    guest.expect(r"\.")


DOT = "mov dx, 0x3f8\nmov al, '.'\nout dx, al\n"

ENDS = {
    "power-off": (kernels.POWEROFF, 0),
    "reset": (kernels.RESET, 80),
    "triple fault": (kernels.UNDEFINED, 81),
    "unsupported instruction": (kernels.UNSUPPORTED, 81),
    "panic": (kernels.PANIC, 82),
}


@pytest.mark.parametrize("case", ENDS)
def test_each_end_has_its_exit_code(start_guest: StartGuest, tmp_path: Path, case: str) -> None:
    source, code = ENDS[case]
    guest = boot(start_guest, tmp_path, source, "--no-reboot")
    assert guest.wait() == code, guest.report("another exit code")
    assert guest.output == b""
    assert b"Traceback" not in guest.errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["interrupt", "hang-up"])
@pytest.mark.parametrize("source", [kernels.SPIN, kernels.HALT], ids=["spins", "halts"])
def test_a_guest_with_interrupts_off_can_be_left(
    start_guest: StartGuest, tmp_path: Path, source: str, number: int
) -> None:
    guest = boot(start_guest, tmp_path, DOT + source)
    wait_until_started(guest)
    guest.signal(number)
    assert guest.wait() == 130, guest.report("another exit code")


def test_a_spinning_guest_is_stopped_after_sigterm(start_guest: StartGuest, tmp_path: Path) -> None:
    """It never looks at the power button: its time for that runs out."""
    guest = boot(start_guest, tmp_path, DOT + kernels.SPIN)
    wait_until_started(guest)
    guest.signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        guest.process.wait(1)
    assert guest.wait() == 130, guest.report("another exit code")
    assert statistics(guest)["exits.pio_out"] == 1


@pytest.mark.parametrize("source", [kernels.UNDEFINED, kernels.RESET], ids=["triple fault", "reset"])
def test_a_boot_loop_uses_bounded_memory(start_guest: StartGuest, tmp_path: Path, source: str) -> None:
    guest = boot(start_guest, tmp_path, DOT + source)
    for _ in range(20):
        wait_until_started(guest)
    early = peak_kib(guest)
    for _ in range(100):
        wait_until_started(guest)
    late = peak_kib(guest)
    guest.signal(signal.SIGINT)
    assert guest.wait() == 130, guest.report("another exit code")
    assert statistics(guest)["machine.resets"] >= 119
    assert late - early < 16 * 1024, "each boot leaves memory behind"


def test_code_that_rewrites_itself_uses_bounded_memory(start_guest: StartGuest, tmp_path: Path) -> None:
    """A million writes into a page of code, each run once: translations of old code do not pile up."""
    source = """
        mov ecx, 1000000
    again:
        mov [patched + 1], ecx
    patched:
        mov eax, 0
        cmp eax, ecx
        jne wrong
        dec ecx
        jnz again
        """
    guest = boot(start_guest, tmp_path, f"{source}{kernels.POWEROFF}\nwrong: ud2", "--no-reboot")
    assert guest.wait(120) == 0, guest.report("another exit code")


@pytest.mark.parametrize("seed", [1, 0x1234_5678, 0xDEAD_BEEF, 0x9E37_79B9])
def test_random_values_in_every_register(start_guest: StartGuest, tmp_path: Path, seed: int) -> None:
    guest = boot(start_guest, tmp_path, register_fuzz(seed, accesses=100_000), "--no-reboot")
    try:
        guest.process.wait(20)
    except subprocess.TimeoutExpired:
        # It may have sent itself an INIT, which halts the processor for good.
        assert peak_kib(guest) < RESIDENT_LIMIT_KIB
        guest.signal(signal.SIGINT)
    assert guest.wait() in DEFINED_ENDS, guest.report("another exit code")
    assert b"Traceback" not in guest.errors
    counters = statistics(guest)
    assert counters["exits.pio_out"] > 1000, guest.report("it did not get far")
    assert counters["exits.mmio_write"] > 1000, guest.report("it did not get far")


@needs_bios
@pytest.mark.parametrize(("machine", "cpus", "leave"), [("pc", 1, "key"), ("q35", 2, "signal")])
def test_random_values_in_every_register_under_the_bios(
    tmp_path: Path, machine: str, cpus: int, leave: str
) -> None:
    fuzz_machine(tmp_path, machine, "bios", cpus=cpus, seconds=FIRMWARE_FUZZ_S, leave=leave)


@needs_uefi
@pytest.mark.skipif(shutil.which("mformat") is None, reason="needs the package mtools")
def test_random_values_in_every_register_under_uefi(tmp_path: Path) -> None:
    fuzz_machine(tmp_path, "q35", "uefi", cpus=1, seconds=FIRMWARE_FUZZ_S, leave="key")


def test_random_code_with_every_privilege(start_guest: StartGuest, tmp_path: Path) -> None:
    """Boot after boot of random instructions; what each printed first repeats it (`code_fuzz`)."""
    guest = boot(start_guest, tmp_path, code_fuzz())
    with contextlib.suppress(subprocess.TimeoutExpired):
        guest.process.wait(CODE_FUZZ_S)
    if guest.process.poll() is None:
        assert peak_kib(guest) < RESIDENT_LIMIT_KIB
        guest.signal(signal.SIGINT)
    assert guest.wait() in DEFINED_ENDS, guest.report("another exit code")
    assert b"Traceback" not in guest.errors
