"""A Debian on a disk, logged in on its serial console."""

from __future__ import annotations

import base64

from tests.integration.guest import Guest

from sublet.guest import PreparedGuest

LOGIN_LIMIT_S = 240.0
_PIECE = 2048
"""Bytes typed on one line; a terminal in canonical mode takes 4095."""


def sublet_flags(guest: PreparedGuest) -> list[str]:
    """What boots a prepared guest by its files."""
    disks = [word for disk in guest.disks for word in ("--disk", str(disk))]
    boot = ["--kernel", str(guest.kernel), "--initrd", str(guest.initrd), "--append", guest.cmdline]
    return [*boot, *disks, "--memory", f"{guest.memory_mib}M", "--no-reboot"]


def log_in(guest: Guest) -> Guest:
    """Log in as root at the login prompt, and change to a plain shell without echo."""
    guest.expect("login: ", LOGIN_LIMIT_S)
    guest.type("root\n")
    guest.expect(r"# ", LOGIN_LIMIT_S)
    guest.type("exec sh\n")
    guest.expect(r"# ")
    guest.type("stty -echo\n")
    guest.expect(r"# ")
    return guest


def write_file(guest: Guest, path: str, text: str) -> None:
    """Type a file into the guest."""
    data = base64.b64encode(text.encode()).decode()
    guest.run(f": > {path}.b64")
    for start in range(0, len(data), _PIECE):
        guest.run(f"echo {data[start : start + _PIECE]} >> {path}.b64")
    guest.run(f"base64 -d {path}.b64 > {path} && rm {path}.b64")
