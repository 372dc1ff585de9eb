"""A bootable CD with a guest of the catalogue on it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sublet.guest import PreparedGuest

_LOADER = Path("/usr/lib/ISOLINUX/isolinux.bin")
_LOADER_LIBRARY = Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")
_CONFIGURATION = """\
SERIAL 0 115200
DEFAULT linux
PROMPT 0
LABEL linux
 KERNEL /vmlinuz
 INITRD /initrd
 APPEND console=ttyS0 quiet {append}
"""


def make_cd(guest: PreparedGuest, folder: Path, append: str = "") -> Path:
    """Write ``cd.iso`` with kernel and RAM disk, booted by ISOLINUX (El Torito, no emulation).

    Args:
        append: More of the kernel's command line.
    """
    if shutil.which("xorriso") is None or not _LOADER.exists() or not _LOADER_LIBRARY.exists():
        pytest.skip("xorriso, isolinux and syslinux-common are not all installed")
    content = folder / "cd"
    content.mkdir()
    shutil.copy(guest.kernel, content / "vmlinuz")
    assert guest.initrd is not None
    shutil.copy(guest.initrd, content / "initrd")
    for file in (_LOADER, _LOADER_LIBRARY):
        shutil.copy(file, content / file.name)
    (content / "isolinux.cfg").write_text(_CONFIGURATION.format(append=append))
    iso = folder / "cd.iso"
    command = ["xorriso", "-as", "mkisofs", "-quiet", "-o", str(iso), "-b", "isolinux.bin", "-c", "boot.cat"]
    command += ["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-r", str(content)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return iso
