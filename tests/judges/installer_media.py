"""Debian's installer as its netboot package has it, as a bootable CD too.

The package ``debian-installer-12-netboot-amd64`` holds what a TFTP server serves: pxelinux with its graphical
menu, GRUB for UEFI behind shim, kernel and RAM disk. The CD made here has the same files and menus, booted
by ISOLINUX (El Torito, no emulation) and by GRUB in an EFI system partition, as Debian's ``mini.iso`` is.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

NETBOOT: Final = Path("/usr/lib/debian-installer/images/12/amd64/text")
FILES: Final = Path("debian-installer/amd64")
KERNEL: Final = NETBOOT / FILES / "linux"
INITRD: Final = NETBOOT / FILES / "initrd.gz"
_ISOLINUX: Final = Path("/usr/lib/ISOLINUX/isolinux.bin")
_TEXT_LABEL: Final = f"""\
DEFAULT text
PROMPT 0
LABEL text
 KERNEL /{FILES}/linux
 INITRD /{FILES}/initrd.gz
 APPEND vga=normal nomodeset --- quiet
"""
_GRUB_START: Final = f"""\
set feature_default_font_path=n
search --file --set=root /{FILES}/linux
set prefix=($root)/{FILES}/grub
configfile $prefix/grub.cfg
"""
_GRUB_MODULES: Final = (
    "iso9660",
    "search",
    "search_fs_file",
    "normal",
    "configfile",
    "linux",
    "font",
    "test",
)
_EFI_PARTITION_KIB: Final = 16 << 10


def missing() -> list[str]:
    """What is not installed of what this needs."""
    files = {
        "debian-installer-12-netboot-amd64": INITRD,
        "isolinux": _ISOLINUX,
        "grub-efi-amd64-bin": Path("/usr/lib/grub/x86_64-efi/fat.mod"),
    }
    commands = {
        "xorriso": "xorriso",
        "mtools": "mcopy",
        "dosfstools": "mkfs.fat",
        "grub-common": "grub-mkimage",
    }
    absent = [package for package, file in files.items() if not file.exists()]
    return absent + [package for package, command in commands.items() if shutil.which(command) is None]


def make_cd(folder: Path, *, text_mode: bool = False) -> Path:
    """Write ``installer.iso`` (or ``text.iso``).

    Args:
        text_mode: No menu for the BIOS: start the installer at once, on the VGA's text screen.
    """
    tree = folder / ("text" if text_mode else "installer")
    shutil.copytree(NETBOOT, tree)
    shutil.copy(_ISOLINUX, tree)
    menu = (tree / "pxelinux.cfg" / "default").read_text()
    (tree / "isolinux.cfg").write_text(_TEXT_LABEL if text_mode else menu)
    _make_efi_partition(folder, tree / "efi.img")
    iso = tree.with_suffix(".iso")
    command = ["xorriso", "-as", "mkisofs", "-quiet", "-o", str(iso), "-r", "-J"]
    command += ["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4"]
    command += ["-boot-info-table", "-eltorito-alt-boot", "-e", "efi.img", "-no-emul-boot", str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    return iso


def _make_efi_partition(folder: Path, image: Path) -> None:
    """A FAT file system with GRUB where UEFI looks for a loader."""
    start, loader = folder / "start.cfg", folder / "bootx64.efi"
    start.write_text(_GRUB_START)
    make = ["grub-mkimage", "-O", "x86_64-efi", "-c", str(start), "-p", f"/{FILES}/grub", "-o", str(loader)]
    steps = [
        [*make, *_GRUB_MODULES],
        ["mkfs.fat", "-C", str(image), str(_EFI_PARTITION_KIB)],
        ["mmd", "-i", str(image), "::EFI", "::EFI/BOOT"],
        ["mcopy", "-i", str(image), str(loader), "::EFI/BOOT/BOOTX64.EFI"],
    ]
    image.unlink(missing_ok=True)
    for step in steps:
        subprocess.run(step, check=True, capture_output=True)
