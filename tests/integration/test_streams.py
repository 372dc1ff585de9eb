"""Standard streams: the console's bytes and nothing else on standard output, whatever else is closed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.guests import kernels
from tests.integration.conftest import StartGuest
from tests.integration.guest import SUBLET_RUN

BYTES = bytes(range(1, 255, 7))
PRINT = "mov dx, 0x3f8\n" + "".join(f"mov al, {byte}\nout dx, al\n" for byte in BYTES)


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Boots a kernel that prints `BYTES` and powers off."""
    kernel = kernels.write_kernel(tmp_path, PRINT + kernels.POWEROFF)
    return ["--kernel", str(kernel), "--memory", "4M", "--engine", "translate"]


def test_standard_output_has_the_console_s_bytes_as_they_are(
    start_guest: StartGuest, flags: list[str]
) -> None:
    guest = start_guest(*flags, "--stats", stdin=False)
    assert guest.wait() == 0, guest.report("another exit code")
    assert guest.output == BYTES
    assert b"exits" in guest.errors, "the statistics are on standard error"


@pytest.mark.parametrize("redirection", ["<&-", "2>&-", "<&- 2>&-"])
def test_closed_streams_are_nobody_s_problem(
    start_guest: StartGuest, flags: list[str], redirection: str
) -> None:
    command = ("sh", "-c", f'exec "$@" {redirection}', "sh", *SUBLET_RUN)
    guest = start_guest(*flags, "--stats", command=command)
    assert guest.wait() == 0, guest.report("another exit code")
    assert guest.output == BYTES


def test_a_reader_that_goes_away_ends_the_machine(start_guest: StartGuest, tmp_path: Path) -> None:
    """The guest prints for ever; ``head`` takes a few bytes and leaves."""
    kernel = kernels.write_kernel(tmp_path, "mov dx, 0x3f8\nmov al, 'x'\n1: out dx, al\njmp 1b")
    pipeline = '("$@"; echo "code $?" >&2) | head -c 10'
    command = ("sh", "-c", pipeline, "sh", *SUBLET_RUN)
    guest = start_guest("--kernel", str(kernel), "--memory", "4M", command=command, stdin=False)
    assert guest.wait() == 0, guest.report("another exit code")
    assert guest.output == b"x" * 10
    assert b"code 130" in guest.errors
