"""Whole Debian systems on disks: 1 to 8 vCPUs, 32-bit userland with both 32-bit kernels, and under Xen.

Run by hand from the top of the repository (ten minutes; the last rows need xen-hypervisor-4.17-amd64 and
gnumach-image-1.8-486):

    scripts/make-debian-disk debian.img
    scripts/make-debian-disk --i386 debian32.img
    PYTHONPATH=benchmarks python -m tests.judges.systems --amd64 debian.img --i386 debian32.img

SeaBIOS and GRUB start each; Debian is to let root log in, to have its processors, to find no unit failed,
and to switch the machine off. Each works on a copy of its disk. Xen starts by Multiboot from a CD, with the
catalogue's ordinary kernel and RAM disk as its first domain, and by its file.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.judges.conversation import Row, Turn, arguments, run_rows
from tests.judges.sides import Machine

from sublet.guest import prepare_guest, silent

_ESP_OFFSET: Final = 1 << 20
_LIMIT_S: Final = 300.0
_XEN: Final = Path("/boot/xen-4.17-amd64.gz")
_MACH: Final = Path("/boot/gnumach-1.8-486.gz")
_XEN_WORDS: Final = "com1=115200,8n1 console=com1 dom0_mem=384M noreboot"
_XEN_MENU: Final = """\
serial
terminal_output serial
set timeout=0
{command} /xen.gz {words}
{module} /vmlinuz console=hvc0 quiet
{module} /initrd
boot
"""


def _logged_in(*turns: Turn) -> list[Turn]:
    """Log in as root, say what is to be said at a shell, and switch off."""
    return [Turn("login: ", "root\n"), *turns, Turn("# ", "poweroff\n")]


def _asked(command: str, answer: str) -> list[Turn]:
    """Run a command. The quotes keep its mark out of the terminal's echo."""
    return [Turn("# ", f"echo sa''id $({command})\n"), Turn(f"said {answer}\r")]


def _copy(disk: Path, folder: Path, entry: int = 0) -> Path:
    """A disk for one row, which starts GRUB's ``entry``."""
    copy, choice = folder / "disk.raw", folder / "choice.cfg"
    subprocess.run(["cp", "--sparse=always", disk, copy], check=True)
    if entry:
        choice.write_text(f"set default={entry}\n")
        subprocess.run(["mcopy", "-i", f"{copy}@@{_ESP_OFFSET}", choice, "::"], check=True)
    return copy


def amd64_rows(disk: Path) -> list[Row]:
    """One system, on more and more processors."""

    def on(cpus: int) -> Row:
        turns = [*_asked("nproc", str(cpus)), *_asked("systemctl --failed --no-legend | wc -l", "0")]
        machine = "pc" if cpus < 4 else "q35"

        def build(folder: Path) -> Machine:
            return Machine(machine, cpus=cpus, disk=_copy(disk, folder), bus="virtio")

        return Row(f"amd64, {machine}, {cpus} vCPU", build, _logged_in(*turns), _LIMIT_S, powers_off=True)

    return [on(cpus) for cpus in (1, 2, 4, 8)]


def i386_rows(disk: Path) -> list[Row]:
    """32-bit programs on both of Debian's 32-bit kernels, on one processor and on two."""

    def on(kernel: str, entry: int, cpus: int) -> Row:
        turns = [
            *_asked("uname -m", "i686"),
            *_asked("uname -r | grep -o 686.*", kernel),
            *_asked("getconf LONG_BIT", "32"),
            *_asked("nproc", str(cpus)),
            *_asked("systemctl --failed --no-legend | wc -l", "0"),
        ]

        def build(folder: Path) -> Machine:
            return Machine(cpus=cpus, disk=_copy(disk, folder, entry), bus="ide")

        return Row(f"i386, {kernel}, {cpus} vCPU", build, _logged_in(*turns), _LIMIT_S, powers_off=True)

    kernels = ("686", "686-pae")
    return [on(kernel, entry, cpus) for entry, kernel in enumerate(kernels) for cpus in (1, 2)]


def xen_rows() -> list[Row]:
    """Xen with one domain, started by GRUB and by ourselves."""
    ready = Turn("sublet:~# ", "echo sa''id $(cat /sys/hypervisor/type) $(nproc)\n")

    def row(name: str, cpus: int, build: Callable[[Path], Machine]) -> Row:
        turns = [Turn("Xen version 4.17"), ready, Turn(f"said xen {cpus}\r"), Turn("# ", "poweroff\n")]
        return Row(f"Xen, {name}, {cpus} vCPU", build, turns, _LIMIT_S, powers_off=True)

    def from_cd(machine: str, cpus: int, version: int, firmware: str = "bios") -> Callable[[Path], Machine]:
        return lambda at: Machine(
            machine, firmware, memory_mib=768, cpus=cpus, cdrom=_xen_cd(at, version), boot="cdrom"
        )

    rows = [
        row("pc, GRUB, Multiboot 2", 1, from_cd("pc", 1, 2)),
        row("pc, GRUB, Multiboot 1", 1, from_cd("pc", 1, 1)),
        row("q35, GRUB, Multiboot 2", 2, from_cd("q35", 2, 2)),
        row("q35, UEFI, GRUB, Multiboot 2", 1, from_cd("q35", 1, 2, "uefi")),
    ]
    return [*rows, row("pc, --kernel", 1, _xen_by_kernel)]


def _xen_cd(folder: Path, version: int) -> Path:
    """GRUB, Xen, and the first domain's kernel, on a CD that BIOS and UEFI start."""
    tree, iso = folder / "tree", folder / "cd.iso"
    guest = prepare_guest("default-amd64", silent)
    assert guest.initrd is not None
    (tree / "boot" / "grub").mkdir(parents=True)
    for source, name in ((_XEN, "xen.gz"), (guest.kernel, "vmlinuz"), (guest.initrd, "initrd")):
        shutil.copy(source, tree / name)
    command, module = ("multiboot2", "module2") if version == 2 else ("multiboot", "module")
    menu = _XEN_MENU.format(command=command, module=module, words=_XEN_WORDS)
    (tree / "boot" / "grub" / "grub.cfg").write_text(menu)
    subprocess.run(["grub-mkrescue", "-o", str(iso), str(tree)], check=True, capture_output=True)
    return iso


def _xen_by_kernel(folder: Path) -> Machine:
    """Xen's file as Multiboot's kernel."""
    guest = prepare_guest("default-amd64", silent)
    modules = (f"{guest.kernel} console=hvc0 quiet", str(guest.initrd))
    xen = _unpacked(_XEN, folder)
    return Machine(memory_mib=768, kernel=xen, append=_XEN_WORDS, modules=modules)


def _unpacked(packed: Path, folder: Path) -> Path:
    """A kernel that lies in a gzip file."""
    kernel = folder / packed.stem
    with kernel.open("wb") as file:
        subprocess.run(["gzip", "-dc", packed], stdout=file, check=True)
    return kernel


def mach_rows() -> list[Row]:
    """GNU Mach, a kernel for the 80486, up to where it wants its servers."""

    def build(folder: Path) -> Machine:
        return Machine(memory_mib=128, kernel=_unpacked(_MACH, folder), append="console=com0")

    turns = [Turn("GNU Mach 1.8"), Turn("RTC time is"), Turn("No bootstrap code loaded")]
    return [Row("GNU Mach, pc, --kernel", build, turns)]


def main() -> int:
    """Entry point."""
    parser = arguments(__doc__)
    parser.add_argument("--amd64", type=Path, help="what scripts/make-debian-disk made")
    parser.add_argument("--i386", type=Path, help="the same with --i386")
    options = parser.parse_args()
    rows = amd64_rows(options.amd64) if options.amd64 else []
    rows += i386_rows(options.i386) if options.i386 else []
    rows += xen_rows() if _XEN.exists() else []
    rows += mach_rows() if _MACH.exists() else []
    with tempfile.TemporaryDirectory() as scratch:
        return run_rows(rows, options, Path(scratch))


if __name__ == "__main__":
    sys.exit(main())
