"""Debian asleep in S3 and awake again: every machine and firmware, disk and network at work afterwards.

Run by hand from the top of the repository (15 minutes; it needs seabios, ovmf, shim-signed,
grub-efi-amd64-signed, mtools and what the script needs):

    scripts/make-debian-disk debian.img
    PYTHONPATH=benchmarks python -m tests.judges.sleep debian.img --json result.json
    PYTHONPATH=benchmarks python -m tests.judges.sleep debian.img --only q35 --qemu

The guest sleeps twice by ``rtcwake -m mem``. After each time it is to write a file, find it on the disk and
not in its cache, and send back a megabyte over TCP; its kernel is to report no error that it had not
reported before. Each row works on a copy of the disk. ``--qemu`` runs the rows in QEMU's TCG, for the verdict
beside ours.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.integration.guest import Guest
from tests.judges.sides import Machine, Network

_MEMORY_MIB: Final = 512
_LIMIT_S: Final = 300.0
_PORT: Final = 5000
_SLEEP_S: Final = 10
"""An alarm that goes off before the system sleeps does not wake it."""
_MEGABYTE: Final = 1 << 20
_ESP_OFFSET: Final = 1 << 20
_ECHO: Final = (
    f"perl -MIO::Socket::INET -e '$l=IO::Socket::INET->new(LocalPort=>{_PORT},Listen=>1,ReuseAddr=>1);"
    'print "liste"."ning\\n";$c=$l->accept;'
    f"while(length $d<{_MEGABYTE}){{sysread($c,$b,65536) or die;$d.=$b}};print $c $d'\n"
)
_UP: Final = "for d in /sys/class/net/e*; do ip a add 10.0.2.15/24 dev ${d##*/}; ip l set ${d##*/} up; done"
_FILE: Final = (
    "head -c 8M /dev/urandom > /root/f && sync && a=$(sha1sum < /root/f) && echo 3 > /proc/sys/vm/drop_caches"
    ' && test "$a" = "$(sha1sum < /root/f)"'
)
_ERRORS: Final = "dmesg --level=emerg,alert,crit,err | sed 's/^[^]]*] //' | sort -u"
_SIGNED: Final = (
    ("/usr/lib/shim/shimx64.efi.signed", "BOOTX64.EFI"),
    ("/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "grubx64.efi"),
)


@dataclass(frozen=True)
class Row:
    """A machine, its firmware, what its disk hangs on, its card, and its vCPUs."""

    machine: str
    firmware: str
    bus: str
    card: str
    cpus: int = 1

    @property
    def name(self) -> str:
        """For the table."""
        vcpus = f", {self.cpus} vCPUs" if self.cpus > 1 else ""
        return f"{self.machine}, {self.firmware}, {self.bus}, {self.card}{vcpus}"

    def on(self, disk: Path, port: int) -> Machine:
        """The machine, which the host reaches at ``port``."""
        network = Network(self.card, forward=f"127.0.0.1:{port}-10.0.2.15:{_PORT}")
        return Machine(self.machine, self.firmware, _MEMORY_MIB, self.cpus, disk, self.bus, network=network)


ROWS: Final = (
    Row("pc", "bios", "ide", "e1000"),
    Row("pc", "bios", "virtio", "virtio", 2),
    Row("q35", "bios", "ahci", "e1000", 2),
    Row("q35", "bios", "virtio", "virtio"),
    Row("pc", "uefi", "ide", "virtio"),
    Row("pc", "uefi", "virtio", "e1000", 2),
    Row("q35", "uefi", "ahci", "virtio", 2),
    Row("q35", "uefi", "virtio", "e1000"),
    Row("q35", "uefi-secure", "ahci", "e1000"),
    Row("q35", "uefi-secure", "virtio", "virtio", 2),
)


def copy_disk(disk: Path, copy: Path, signed: bool) -> None:
    """A disk for one row; with Debian's signed loaders for Secure Boot."""
    subprocess.run(["cp", "--sparse=always", disk, copy], check=True)
    if not signed:
        return
    esp = f"{copy}@@{_ESP_OFFSET}"
    for source, name in _SIGNED:
        subprocess.run(["mcopy", "-o", "-i", esp, source, f"::EFI/BOOT/{name}"], check=True)
    # The signed GRUB reads its settings there.
    found = "search --no-floppy --label root --set=root\nset prefix=($root)/boot/grub\n"
    settings = f"{found}configfile /boot/grub/grub.cfg\n".encode()
    subprocess.run(["mmd", "-i", esp, "::EFI/debian"], check=True)
    subprocess.run(["mcopy", "-i", esp, "-", "::EFI/debian/grub.cfg"], input=settings, check=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _exchange(guest: Guest, port: int) -> None:
    """A megabyte to the guest and back."""
    data = os.urandom(_MEGABYTE)
    guest.type(_ECHO)
    guest.expect("listening")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        with connection.makefile("rb") as back:
            answer = back.read(_MEGABYTE)
    assert answer == data, f"the guest sent {len(answer)} bytes back, not what it got"
    guest.expect("# ")


def _work(guest: Guest, port: int) -> None:
    guest.run(_FILE)
    _exchange(guest, port)


def sleep_and_work(guest: Guest, port: int) -> None:
    """Sleep twice.

    Raises:
        AssertionError: Something did not work afterwards.
    """
    guest.expect("login:", _LIMIT_S)
    guest.type("root\n")
    guest.expect("# ")
    guest.run(_UP)
    _work(guest, port)
    for _ in range(2):
        before = set(guest.run(_ERRORS).splitlines())
        guest.type(f"rtcwake -m mem -s {_SLEEP_S}; echo wo''ke-$?\n")
        guest.expect("woke-0")
        _work(guest, port)
        new = set(guest.run(_ERRORS).splitlines()) - before
        assert not new, f"the kernel's log: {sorted(new)}"
    assert "2" in guest.run("cat /sys/power/suspend_stats/success").split()


def judge(command: Sequence[str], port: int) -> str:
    """``pass``, or what went wrong."""
    guest = Guest((), command=command)
    try:
        sleep_and_work(guest, port)
    except (AssertionError, OSError) as error:
        print(guest.report(str(error)), file=sys.stderr)
        return str(error).splitlines()[0][:200]
    finally:
        guest.close()
    return "pass"


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("disk", type=Path, help="what scripts/make-debian-disk made")
    parser.add_argument("--only", default="", help="rows with this in their names")
    parser.add_argument("--qemu", action="store_true", help="run the rows in QEMU too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print("| machine, firmware, disk, network | verdict | QEMU's TCG |\n|---|---|---|")
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "disk.raw"
        for row in (row for row in ROWS if options.only in row.name):
            verdicts = []
            for command in (Machine.ours, Machine.qemu) if options.qemu else (Machine.ours,):
                copy_disk(options.disk, copy, row.firmware == "uefi-secure")
                port = _free_port()
                verdicts.append(judge(command(row.on(copy, port)), port))
            results.append({**asdict(row), "verdicts": verdicts})
            print(f"| {row.name} | {' | '.join(verdicts)} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if any(result["verdicts"][0] != "pass" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
