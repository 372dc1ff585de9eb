"""The default guest, from the command to a shell and back."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tests.integration.conftest import StartGuest
from tests.integration.guest import SUBLET_RUN, Guest

from sublet.guest import PreparedGuest

pytestmark = pytest.mark.guest

PROMPT = r"[#$] (\x1b\[6n)?\Z"
"""A shell that waits; BusyBox then asks the terminal where the cursor is."""


@pytest.fixture
def kernel_flags(default_guest: PreparedGuest) -> list[str]:
    assert default_guest.initrd is not None
    return ["--kernel", str(default_guest.kernel), "--initrd", str(default_guest.initrd)]


@pytest.fixture
def shell(start_guest: StartGuest, default_guest: PreparedGuest) -> Guest:
    """The default guest at its prompt."""
    guest = start_guest("--no-reboot", "--stats=json")
    guest.expect(PROMPT)
    return guest


def test_commands_run_and_poweroff_ends(shell: Guest) -> None:
    assert shell.run("uname -s").strip() == "Linux"
    shell.type("poweroff\n")
    assert shell.wait() == 0, shell.report("another exit code")


def test_statistics_are_json_on_standard_error(shell: Guest) -> None:
    shell.type("poweroff\n")
    shell.wait()
    statistics = json.loads(shell.errors.decode().splitlines()[-1])
    assert statistics["exits.pio_out"] > 0


def test_a_host_with_little_address_space_is_enough(
    start_guest: StartGuest, default_guest: PreparedGuest
) -> None:
    """Memory windows reserve hundreds of GiB; without them it works too."""
    limit = ("prlimit", f"--as={6 << 30}")
    guest = start_guest("--no-reboot", "--engine", "translate", command=(*limit, *SUBLET_RUN))
    guest.expect(PROMPT)
    assert guest.run("uname -s").strip() == "Linux"
    guest.type("poweroff\n")
    assert guest.wait() == 0, guest.report("another exit code")


def test_reboot_leaves_with_no_reboot(shell: Guest) -> None:
    shell.type("reboot\n")
    assert shell.wait() == 80, shell.report("another exit code")


def test_reboot_boots_again(start_guest: StartGuest, default_guest: PreparedGuest) -> None:
    guest = start_guest()
    for _ in range(2):
        guest.expect(PROMPT)
        guest.type("reboot\n")
    guest.expect(PROMPT)
    guest.type("poweroff\n")
    assert guest.wait() == 0, guest.report("another exit code")


def test_a_kernel_panic_ends_the_machine(shell: Guest) -> None:
    """The guest's pvpanic driver reports it, so it does not hang."""
    shell.type("echo c > /proc/sysrq-trigger\n")
    assert shell.wait() == 82, shell.report("another exit code")
    assert b"Kernel panic - not syncing: sysrq triggered crash" in shell.output


def test_a_panic_that_resets_is_a_reset(start_guest: StartGuest, default_guest: PreparedGuest) -> None:
    """A kernel that panics before it has drivers can only follow ``panic=-1``."""
    guest = start_guest("--no-reboot", "--append", "panic=-1 rdinit=/nowhere init=/nowhere")
    assert guest.wait() == 80, guest.report("another exit code")
    assert b"Kernel panic - not syncing" in guest.output


def pasted_lines() -> list[str]:
    """A little more than 100 KB."""
    return [f"{number:06} some words of a pasted document\n" for number in range(2700)]


def test_pasted_text_arrives_whole(shell: Guest) -> None:
    lines = pasted_lines()
    shell.run("stty -echo")
    shell.type("head -n 2700 > /tmp/pasted\n" + "".join(lines))
    assert shell.run("wc -c < /tmp/pasted").split()[-1] == str(sum(map(len, lines)))
    assert shell.run("tail -n 1 /tmp/pasted").split()[0] == "002699"


def test_closed_standard_input_is_no_end(start_guest: StartGuest, default_guest: PreparedGuest) -> None:
    guest = start_guest("--no-reboot", stdin=False)
    guest.expect(PROMPT)
    guest.signal(signal.SIGINT)
    assert guest.wait() == 130, guest.report("another exit code")


def test_a_disk_is_read_and_written(
    start_guest: StartGuest, default_guest: PreparedGuest, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"from the host\n".ljust(1 << 20, b"\0"))
    guest = start_guest("default", "--no-reboot", "--disk", str(disk))
    guest.expect(PROMPT)
    assert "from the host" in guest.run("head -n 1 /dev/vda")
    guest.run("echo from the guest | dd of=/dev/vda bs=512 seek=1 conv=sync,fsync 2>/dev/null")
    guest.type("poweroff\n")
    assert guest.wait() == 0, guest.report("another exit code")
    assert disk.read_bytes()[512:].startswith(b"from the guest\n")


def test_the_virtio_console_can_be_the_console(
    start_guest: StartGuest, default_guest: PreparedGuest, kernel_flags: list[str]
) -> None:
    cmdline = default_guest.cmdline.replace("ttyS0", "hvc0")
    guest = start_guest("--no-reboot", *kernel_flags, "--append", cmdline)
    guest.expect(PROMPT)
    assert guest.run("uname -s").strip() == "Linux"


def test_the_virtio_console_stays_quiet_unless_it_is_asked_for(shell: Guest) -> None:
    assert shell.run("modprobe -q virtio_console; echo not shown > /dev/hvc0") == ""


def test_sigterm_shuts_the_guest_down(shell: Guest) -> None:
    shell.signal(signal.SIGTERM)
    assert shell.wait() == 0, shell.report("another exit code")
    assert b"Requesting system poweroff" in shell.output


def test_a_second_sigterm_leaves_a_guest_that_ignores_the_first(shell: Guest) -> None:
    shell.run("killall dd")
    shell.signal(signal.SIGTERM)
    assert shell.run("echo still here") == "still here\n"
    shell.signal(signal.SIGTERM)
    assert shell.wait() == 130, shell.report("another exit code")
