"""Boot loaders that others wrote, from every medium they boot from: OVMF's shell, GRUB, SYSLINUX, iPXE.

Run by hand from the top of the repository (ten minutes; `missing` in loader_media.py names the packages):

    PYTHONPATH=benchmarks python -m tests.judges.loaders --json result.json
    PYTHONPATH=benchmarks python -m tests.judges.loaders --only "network|iPXE" --qemu --logs DIRECTORY

Each is talked to on the serial port, which SeaBIOS serves for loaders that know only the screen. Where it
can, it then starts the catalogue's small guest, which is to reach its shell.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.judges import loader_media as media
from tests.judges.conversation import Row, Turn, arguments, run_rows
from tests.judges.sides import Machine, Network

_SHELL: Final = Turn("sublet:~# ", "uname -s; poweroff\n")
_DOWN: Final = Turn("Linux\r\n")
_BIOS_GRUB: Final = (
    Turn("GNU GRUB", "c"),
    Turn("grub>", "cpuid -l\r"),
    Turn("grub>", "echo $grub_platform $?\r"),
    Turn("pc 0"),
)
_SYSLINUX_GUEST: Final = (Turn("boot: ", "linux\r"), _SHELL, _DOWN)
_SYSLINUX_CPUID: Final = (Turn("boot: ", "cpuid.c32 0\r"), Turn("htuA"))
_SYSLINUX_MEMDISK: Final = (Turn("boot: ", "grub\r"), Turn("MEMDISK"), *_BIOS_GRUB)
_GRUB_GUEST: Final = (Turn("Small guest", "\r"), _SHELL, _DOWN)
_IPXE_GUEST: Final = (
    Turn("Ctrl-B", "\x02"),
    Turn("iPXE>", "dhcp\r"),
    Turn(" ok"),
    Turn("iPXE>", "show net0/ip\r"),
    Turn("10.0.2.15"),
    Turn("iPXE>", "chain tftp://10.0.2.2/boot.ipxe\r"),
    _SHELL,
    _DOWN,
)
_SHELL_COMMANDS: Final = (
    Turn("Shell>", "ver\r"),
    Turn("UEFI Interactive Shell"),
    Turn("Shell>", "map -r\r"),
    Turn("FS0:"),
    Turn("Shell>", "memmap\r"),
    Turn("BS_Code"),
    Turn("Shell>", "ls fs0:\r"),
    Turn("EFI"),
    Turn("Shell>", "reset -s\r"),
)
_STARTUP: Final = "@echo -off\nver\necho by startup.nsh\nreset -s\n"
_STARTED: Final = (Turn("UEFI Interactive Shell"), Turn("by startup.nsh"))


def _row(
    name: str, machine: Callable[[Path], Machine], *turns: Turn, powers_off: bool = False, limit_s: float = 60
) -> Row:
    return Row(name, machine, turns, limit_s=limit_s, powers_off=powers_off, slowly=True)


def _from_network(
    bootfile: str, machine: str = "pc", firmware: str = "bios", model: str = "e1000"
) -> Callable[[Path], Machine]:
    def prepare(folder: Path) -> Machine:
        network = Network(model, media.tftp_folder(folder), bootfile)
        return Machine(machine, firmware, boot="network", network=network)

    return prepare


def bios_rows() -> list[Row]:
    """Loaders that SeaBIOS starts."""
    grub_q35 = Machine("q35", cdrom=media.GRUB_CD, boot="cdrom")
    rows = [
        _row("GRUB, CD", lambda _: Machine(cdrom=media.GRUB_CD, boot="cdrom"), *_BIOS_GRUB),
        _row("GRUB, CD, q35", lambda _: grub_q35, *_BIOS_GRUB),
        _row("GRUB, floppy", lambda at: _floppy(media.copied(media.GRUB_FLOPPY, at)), *_BIOS_GRUB),
        _row("GRUB, disk", lambda at: Machine(disk=media.copied(media.GRUB_DISK, at)), *_BIOS_GRUB),
        _row("SYSLINUX, floppy", lambda at: _floppy(media.syslinux_floppy(at)), *_SYSLINUX_CPUID),
        _row("SYSLINUX, disk, MEMDISK", lambda at: Machine(disk=media.syslinux_disk(at)), *_SYSLINUX_MEMDISK),
    ]
    guests = {
        "ISOLINUX, CD": lambda at: Machine(cdrom=media.isolinux_cd(at)),
        "SYSLINUX, disk": lambda at: Machine(disk=media.syslinux_disk(at)),
        "PXELINUX, network": _from_network("pxelinux.0"),
        "PXELINUX, network, q35, virtio": _from_network("pxelinux.0", "q35", model="virtio"),
    }
    rows += [_row(name, machine, *_SYSLINUX_GUEST, powers_off=True) for name, machine in guests.items()]
    return [*rows, _row("GRUB, network", _from_network("grub.pxe"), *_GRUB_GUEST, powers_off=True)]


def _floppy(image: Path) -> Machine:
    return Machine(floppy=image, boot="floppy")


def ipxe_rows() -> list[Row]:
    """iPXE as Debian's package has it, beside the one in the network cards' ROMs."""

    def with_tftp(folder: Path, **what: Any) -> Machine:
        return Machine(network=Network(tftp=media.tftp_folder(folder)), **what)

    def from_efi_disk(folder: Path) -> Machine:
        disk = media.efi_disk(folder, loader=media.IPXE_EFI)
        return with_tftp(folder, machine="q35", firmware="uefi", disk=disk)

    ways: dict[str, Callable[[Path], Machine]] = {
        "iPXE, CD": lambda at: with_tftp(at, cdrom=media.IPXE_CD, boot="cdrom"),
        "iPXE, --kernel": lambda at: with_tftp(at, kernel=media.IPXE_KERNEL),
        "iPXE, network (undionly.kpxe)": _from_network("undionly.kpxe"),
        "iPXE, UEFI, disk": from_efi_disk,
        "iPXE, UEFI, network": _from_network("ipxe.efi", "q35", "uefi", "virtio"),
    }
    return [_row(name, machine, *_IPXE_GUEST, powers_off=True) for name, machine in ways.items()]


def uefi_rows() -> list[Row]:
    """OVMF's own shell, and what it starts from the network."""

    def on_disk(machine: str, startup: str) -> Callable[[Path], Machine]:
        return lambda at: Machine(machine, "uefi", disk=media.efi_disk(at, startup=startup))

    rows = []
    for machine in ("pc", "q35"):
        commands, script = on_disk(machine, ""), on_disk(machine, _STARTUP)
        rows += [
            _row(f"UEFI shell, commands, {machine}", commands, *_SHELL_COMMANDS, powers_off=True),
            _row(f"UEFI shell, startup.nsh, {machine}", script, *_STARTED, powers_off=True),
        ]
    network = _from_network("grub.efi", "q35", "uefi")
    return [*rows, _row("GRUB, UEFI, network", network, *_GRUB_GUEST, powers_off=True)]


def memtest_rows() -> list[Row]:
    """memtest86+, one pass each: its 64-bit and 32-bit builds by the BIOS, and by UEFI."""

    def by_bios(program: Path) -> Callable[[Path], Machine]:
        append = "console=ttyS0,115200"
        return lambda _: Machine(memory_mib=8, kernel=program, append=append)

    rows = {"64 bits": by_bios(media.MEMTEST), "32 bits": by_bios(media.MEMTEST_32)}
    return [
        _row(f"memtest86+, {name}, one pass", machine, Turn("Pass:  1        Errors: 0 "), limit_s=400)
        for name, machine in rows.items()
    ]


def main() -> int:
    """Entry point."""
    options = arguments(__doc__).parse_args()
    if absent := media.missing():
        print(f"not installed: {' '.join(absent)}", file=sys.stderr)
        return 2
    rows = [*bios_rows(), *ipxe_rows(), *uefi_rows(), *memtest_rows()]
    with tempfile.TemporaryDirectory() as scratch:
        return run_rows(rows, options, Path(scratch))


if __name__ == "__main__":
    sys.exit(main())
