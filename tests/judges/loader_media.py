"""Media with the boot loaders of Debian's packages, each as a user would make it.

What they load is the catalogue's small guest: a kernel and a RAM disk with a shell.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sublet.guest import PreparedGuest, prepare_guest, silent

GRUB_CD: Final = Path("/usr/lib/grub-rescue/grub-rescue-cdrom.iso")
GRUB_FLOPPY: Final = Path("/usr/lib/grub-rescue/grub-rescue-floppy.img")
GRUB_DISK: Final = Path("/usr/lib/grub-rescue/grub-rescue-usb.img")
IPXE_CD: Final = Path("/usr/lib/ipxe/ipxe.iso")
IPXE_KERNEL: Final = Path("/usr/lib/ipxe/ipxe.lkrn")
IPXE_UNDI: Final = Path("/usr/lib/ipxe/undionly.kpxe")
IPXE_EFI: Final = Path("/usr/lib/ipxe/ipxe.efi")
MEMTEST: Final = Path("/boot/memtest86+x64.bin")
MEMTEST_32: Final = Path("/boot/memtest86+ia32.bin")
MEMTEST_EFI: Final = Path("/boot/memtest86+x64.efi")
_MODULES: Final = Path("/usr/lib/syslinux/modules/bios")
_MEMDISK: Final = Path("/usr/lib/syslinux/memdisk")
_PXELINUX: Final = Path("/usr/lib/PXELINUX/pxelinux.0")
_ISOLINUX: Final = Path("/usr/lib/ISOLINUX/isolinux.bin")
_SYSLINUX_MBR: Final = Path("/usr/lib/SYSLINUX/mbr.bin")
_MIB: Final = 1 << 20
_SYSLINUX: Final = """\
DEFAULT linux
PROMPT 1
TIMEOUT 0
LABEL linux
 KERNEL {folder}vmlinuz
 INITRD {folder}initrd
 APPEND console=ttyS0 quiet
LABEL grub
 KERNEL {folder}memdisk
 INITRD {folder}floppy.img
 APPEND floppy
"""
_GRUB: Final = """\
set timeout=-1
menuentry "Small guest" {
  linux /vmlinuz console=ttyS0 quiet
  initrd /initrd
}
"""
_GRUB_NETWORK: Final = "set prefix=(tftp)/grub\nconfigfile (tftp)/grub.cfg\n"
_IPXE_SCRIPT: Final = """\
#!ipxe
kernel vmlinuz console=ttyS0 quiet initrd=initrd
initrd initrd
boot
"""


def missing() -> list[str]:
    """The packages that are not installed of those this needs."""
    files = {
        "grub-rescue-pc": GRUB_CD,
        "ipxe": IPXE_CD,
        "pxelinux": _PXELINUX,
        "syslinux": _SYSLINUX_MBR,
        "syslinux-common": _MEMDISK,
        "isolinux": _ISOLINUX,
        "memtest86+": MEMTEST,
        "grub-pc-bin": Path("/usr/lib/grub/i386-pc/boot.img"),
        "grub-efi-amd64-bin": Path("/usr/lib/grub/x86_64-efi/fat.mod"),
    }
    commands = {"xorriso": "xorriso", "mtools": "mcopy", "dosfstools": "mkfs.fat", "fdisk": "sfdisk"}
    absent = [package for package, file in files.items() if not file.exists()]
    return absent + [package for package, command in commands.items() if shutil.which(command) is None]


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True)


def small_guest() -> PreparedGuest:
    """What the loaders load."""
    return prepare_guest("default", silent)


def _put_guest(folder: Path) -> None:
    guest = small_guest()
    assert guest.initrd is not None
    shutil.copy(guest.kernel, folder / "vmlinuz")
    shutil.copy(guest.initrd, folder / "initrd")


def copied(image: Path, folder: Path) -> Path:
    """A copy that the machine may write."""
    return Path(shutil.copy(image, folder))


def isolinux_cd(folder: Path) -> Path:
    """ISOLINUX by El Torito, no emulation, at its prompt."""
    tree, iso = folder / "cd", folder / "cd.iso"
    tree.mkdir()
    _put_guest(tree)
    for file in (_ISOLINUX, _MEMDISK, *_syslinux_modules()):
        shutil.copy(file, tree)
    shutil.copy(GRUB_FLOPPY, tree / "floppy.img")
    (tree / "isolinux.cfg").write_text(_SYSLINUX.format(folder="/"))
    boot = [
        "-b",
        "isolinux.bin",
        "-c",
        "boot.cat",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        "-boot-info-table",
    ]
    _run("xorriso", "-as", "mkisofs", "-quiet", "-o", iso, *boot, "-r", tree)
    return iso


def _syslinux_modules() -> list[Path]:
    return [
        _MODULES / name for name in ("ldlinux.c32", "libcom32.c32", "libutil.c32", "cpuid.c32", "hdt.c32")
    ]


def syslinux_floppy(folder: Path) -> Path:
    """SYSLINUX on a floppy disk of 1.44 MB, with a program in its own format."""
    image = folder / "floppy.img"
    _run("mkfs.fat", "-C", image, "1440")
    _run("syslinux", "--install", image)
    settings = folder / "syslinux.cfg"
    settings.write_text("PROMPT 1\nTIMEOUT 0\n")
    modules = [module for module in _syslinux_modules() if module.name != "hdt.c32"]
    _run("mcopy", "-i", image, settings, *modules[1:], "::")
    return image


def syslinux_disk(folder: Path) -> Path:
    """SYSLINUX in a FAT partition, started by its own MBR, with a floppy image for MEMDISK."""
    start = 2048
    image = _partitioned(folder, start, "0c, bootable")
    with image.open("r+b") as file:
        file.write(_SYSLINUX_MBR.read_bytes()[:440])
    at = f"{image}@@{start * 512}"
    _run("syslinux", "--install", "--offset", str(start * 512), image)
    tree = folder / "files"
    tree.mkdir()
    _put_guest(tree)
    (tree / "syslinux.cfg").write_text(_SYSLINUX.format(folder="/"))
    for file in (_MEMDISK, *_syslinux_modules()[1:]):
        shutil.copy(file, tree)
    shutil.copy(GRUB_FLOPPY, tree / "floppy.img")
    _run("mcopy", "-i", at, *sorted(tree.iterdir()), "::")
    return image


def _partitioned(folder: Path, start: int, kind: str) -> Path:
    """A disk of 64 MiB with an MBR and one FAT partition, from sector ``start``."""
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 * _MIB)
    table = f"label: dos\nstart={start}, type={kind}\n"
    subprocess.run(["sfdisk", "-q", image], input=table.encode(), check=True)
    sectors = 64 * _MIB // 512 - start
    _run("mkfs.fat", "--offset", str(start), image, str(sectors // 2))
    return image


def tftp_folder(folder: Path) -> Path:
    """What a TFTP server has for PXELINUX, GRUB and iPXE, by BIOS and by UEFI."""
    root = folder / "tftp"
    (root / "pxelinux.cfg").mkdir(parents=True)
    _put_guest(root)
    for file in (_PXELINUX, _MEMDISK, *_syslinux_modules(), IPXE_UNDI, IPXE_EFI):
        shutil.copy(file, root)
    shutil.copy(GRUB_FLOPPY, root / "floppy.img")
    (root / "pxelinux.cfg" / "default").write_text(_SYSLINUX.format(folder=""))
    (root / "boot.ipxe").write_text(_IPXE_SCRIPT)
    (root / "grub.cfg").write_text(_GRUB)
    modules = ["tftp", "normal", "configfile", "linux", "reboot", "halt"]
    _grub_image(folder, "i386-pc-pxe", root / "grub.pxe", ["pxe", "biosdisk", *modules], _GRUB_NETWORK)
    _grub_image(folder, "x86_64-efi", root / "grub.efi", ["efinet", *modules], _GRUB_NETWORK)
    return root


def _grub_image(folder: Path, target: str, image: Path, modules: Sequence[str], start: str) -> None:
    settings = folder / "start.cfg"
    settings.write_text(start)
    _run("grub-mkimage", "-O", target, "-p", "/grub", "-c", settings, "-o", image, *modules)


def efi_disk(
    folder: Path, *, loader: Path | None = None, files: Sequence[Path] = (), startup: str = ""
) -> Path:
    """A FAT disk for UEFI.

    Args:
        loader: What UEFI starts by itself.
        files: Beside it.
        startup: Commands for UEFI's shell, ``startup.nsh``.
    """
    image = _partitioned(folder, 2048, "ef")
    at = f"{image}@@{2048 * 512}"
    _run("mmd", "-i", at, "::EFI", "::EFI/BOOT")
    if loader:
        _run("mcopy", "-i", at, loader, "::EFI/BOOT/BOOTX64.EFI")
    if startup:
        script = folder / "startup.nsh"
        script.write_text(startup.replace("\n", "\r\n"))
        files = [*files, script]
    if files:
        _run("mcopy", "-i", at, *files, "::")
    return image
