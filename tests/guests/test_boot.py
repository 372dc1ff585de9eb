"""The guests of the catalogue boot, and their kernels complain of nothing that QEMU's does not too."""

from __future__ import annotations

import pytest
from tests.guests import debian
from tests.guests.conftest import StartGuest
from tests.guests.kernel_log import comparable, qemu_command, warnings
from tests.integration.guest import Guest
from tests.integration.test_boot import PROMPT

from sublet.guest import PreparedGuest, prepare_guest, silent

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

RAM_DISKS = ("default", "default-amd64")
OLD_PROCESSORS = ("default-686", "default-686-pae")


@pytest.mark.parametrize("name", RAM_DISKS)
def test_a_kernel_boots_to_a_shell_and_powers_off_twice(start_guest: StartGuest, name: str) -> None:
    for _ in range(2):
        guest = start_guest(name, "--engine", "translate")
        guest.expect(PROMPT)
        guest.type("poweroff\n")
        assert guest.wait() == 0, guest.report("another exit code")


@pytest.mark.parametrize("name", OLD_PROCESSORS)
def test_a_32_bit_kernel_boots_to_a_shell(start_guest: StartGuest, name: str) -> None:
    guest = start_guest(name, "--engine", "translate")
    guest.expect(PROMPT)
    assert guest.run("uname -m").strip() == "i686"
    guest.type("poweroff\n")
    assert guest.wait() == 0, guest.report("another exit code")


@pytest.mark.parametrize("name", RAM_DISKS)
def test_a_small_guest_warns_of_nothing_that_qemu_s_does_not(start_guest: StartGuest, name: str) -> None:
    prepared = prepare_guest(name, silent)
    ours = start_guest(name, "--engine", "translate")
    theirs = start_guest(command=qemu_command(prepared))
    for guest in (ours, theirs):
        guest.expect(PROMPT, debian.LOGIN_LIMIT_S)
    assert_no_other_warnings(ours, theirs)


@pytest.fixture
def debian_guest() -> PreparedGuest:
    return prepare_guest("debian", silent)


def test_debian_warns_of_nothing_that_qemu_s_does_not(
    start_guest: StartGuest, debian_guest: PreparedGuest
) -> None:
    theirs = start_guest(command=qemu_command(debian_guest))
    debian.log_in(theirs)
    ours = debian.log_in(start_guest("debian", "--engine", "translate"))
    assert_no_other_warnings(ours, theirs)


def test_debian_has_one_login_and_shuts_down_at_the_power_button(start_guest: StartGuest) -> None:
    guest = debian.log_in(start_guest("debian", "--engine", "translate"))
    assert guest.run("systemctl is-system-running --wait").strip() == "running"
    assert guest.output.count(b"login: ") == 1
    guest.process.terminate()
    assert guest.wait() == 0, guest.report("another exit code")


def assert_no_other_warnings(ours: Guest, theirs: Guest) -> None:
    known = comparable(warnings(theirs))
    others = [message for message in warnings(ours) if not comparable([message]) <= known]
    assert others == [], f"QEMU's kernel says only {sorted(known)}"
