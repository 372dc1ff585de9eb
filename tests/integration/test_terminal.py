"""The default guest on a terminal: raw while the guest has it, restored on every way out."""

from __future__ import annotations

import signal
import termios

import pytest
from tests.integration.conftest import StartGuest
from tests.integration.guest import Guest
from tests.integration.test_boot import PROMPT, pasted_lines

from sublet.guest import PreparedGuest

pytestmark = pytest.mark.guest

ESCAPE_KEY = "\x1d"


@pytest.fixture
def guest(start_guest: StartGuest, default_guest: PreparedGuest) -> Guest:
    """The default guest, just started on a terminal."""
    return start_guest("--no-reboot", terminal=True)


def settings(guest: Guest) -> list[object]:
    assert guest.terminal is not None
    return termios.tcgetattr(guest.terminal)


def test_the_way_out_is_shown_and_taken(guest: Guest) -> None:
    before = settings(guest)
    guest.expect(PROMPT)
    assert b"Ctrl-] leaves" in guest.errors
    assert settings(guest) != before, "the terminal is not raw"
    guest.type(ESCAPE_KEY)
    assert guest.process.wait(30) == 130
    assert settings(guest) == before


def test_the_way_out_works_while_the_kernel_boots(guest: Guest) -> None:
    before = settings(guest)
    while b"Ctrl-] leaves" not in guest.errors:
        assert guest.process.poll() is None, guest.report("it ended")
    while settings(guest) == before:
        assert guest.process.poll() is None, guest.report("it ended")
    guest.type(ESCAPE_KEY)
    assert guest.process.wait(30) == 130
    assert settings(guest) == before


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 130)],
    ids=lambda v: str(v),
)
def test_signals_restore_the_terminal(guest: Guest, number: int, code: int) -> None:
    before = settings(guest)
    guest.expect(PROMPT)
    guest.signal(number)
    assert guest.process.wait(30) == code
    assert settings(guest) == before


def test_poweroff_and_panic_restore_the_terminal(start_guest: StartGuest, guest: Guest) -> None:
    for command, code in (("poweroff", 0), ("echo c > /proc/sysrq-trigger", 82)):
        machine = start_guest("--no-reboot", terminal=True)
        before = settings(machine)
        machine.expect(PROMPT)
        machine.type(f"{command}\n")
        assert machine.process.wait(30) == code
        assert settings(machine) == before


def test_ctrl_c_belongs_to_the_guest(guest: Guest) -> None:
    guest.expect(PROMPT)
    # A shell that has not yet run what it forked for takes the signal itself; this one has.
    guest.type("sh -c \"echo star''ted; exec sleep 1000\"\n")
    guest.expect("started")
    guest.type("\x03")
    guest.expect(r"\^C")
    guest.expect(PROMPT)
    assert guest.run("echo alive") == "alive\n"


def test_pasted_text_arrives_whole(guest: Guest) -> None:
    guest.expect(PROMPT)
    guest.run("stty -echo")
    lines = pasted_lines()
    guest.type("head -n 2700 > /tmp/pasted\n" + "".join(lines))
    assert guest.run("wc -c < /tmp/pasted").split()[-1] == str(sum(map(len, lines)))
