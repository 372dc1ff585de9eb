"""Media that do not boot, under real firmware: it says so, the machine lives on, and Ctrl-] leaves."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from tests.integration.conftest import StartGuest
from tests.integration.test_firmware import RESETS, boot_sector, needs_bios, needs_uefi

pytestmark = pytest.mark.guest

CD_SECTOR = 2048
BOOT_RECORD, CATALOGUE = 17, 20
"""Sectors of a CD (El Torito 1.0 §2.0 "Boot Record Volume"; the catalogue is where the record says)."""
NOWHERE = 0x00FF_FFFF
LEAVE, LEFT = "\x1d", 130
POWER_OFF = bytes.fromhex("ba0406 b80034 ef f4".replace(" ", ""))


def cd(path: Path, *, catalogue: int = CATALOGUE, checksum: int = 0, image: int = 21, media: int = 0) -> Path:
    """A CD of 64 sectors with an El Torito boot record that may lie.

    Args:
        catalogue: Sector of the boot catalogue.
        checksum: Added to the validation entry's, which makes it wrong.
        image: Sector of the boot image.
        media: Kind of emulation; 0 to 4 exist.
    """
    content = bytearray(64 * CD_SECTOR)
    content[16 * CD_SECTOR : 16 * CD_SECTOR + 7] = b"\x01CD001\x01"
    at = BOOT_RECORD * CD_SECTOR
    content[at : at + 30] = b"\x00CD001\x01EL TORITO SPECIFICATION"
    struct.pack_into("<I", content, at + 0x47, catalogue)
    validation = bytearray(32)
    validation[0], validation[30], validation[31] = 1, 0x55, 0xAA
    words = struct.unpack("<16H", validation)
    struct.pack_into("<H", validation, 28, (checksum - sum(words)) & 0xFFFF)
    entry = struct.pack("<BBHBBHI", 0x88, media, 0, 0, 0, 4, image).ljust(32, b"\0")
    content[CATALOGUE * CD_SECTOR : CATALOGUE * CD_SECTOR + 64] = validation + entry
    path.write_bytes(content)
    return path


def without_boot_record(path: Path) -> Path:
    """What xorriso makes of one file."""
    if shutil.which("xorriso") is None:
        pytest.skip("xorriso is not installed")
    tree = path.parent / "tree"
    tree.mkdir()
    (tree / "file").write_text("nothing to boot")
    command = ["xorriso", "-as", "mkisofs", "-quiet", "-o", str(path), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    return path


CDS = {
    "no boot record": without_boot_record,
    "catalogue behind the end": lambda path: cd(path, catalogue=NOWHERE),
    "no catalogue": lambda path: cd(path, catalogue=30),
    "wrong checksum": lambda path: cd(path, checksum=1),
    "image behind the end": lambda path: cd(path, image=NOWHERE),
    "unknown emulation": lambda path: cd(path, media=9),
    "cut off": lambda path: (cd(path), path.write_bytes(path.read_bytes()[: 18 * CD_SECTOR]), path)[-1],
}


@needs_bios
@pytest.mark.parametrize("kind", list(CDS))
def test_a_cd(start_guest: StartGuest, tmp_path: Path, kind: str) -> None:
    machine = ("pc", "q35")[list(CDS).index(kind) % 2]
    iso = CDS[kind](tmp_path / "cd.iso")
    words = ("--machine", machine, "--memory", "32M", "--net", "none", "--cdrom", str(iso), "--boot", "cdrom")
    guest = start_guest(*words, terminal=True)
    guest.expect("Booting from DVD/CD")
    # What is in the sector at an image's address is run, as on a PC: here that is zeros.
    if kind not in ("wrong checksum", "unknown emulation"):
        guest.expect("No bootable device|Boot failed")
    guest.type(LEAVE)
    assert guest.wait() == LEFT, guest.report("Ctrl-] does not leave")


@needs_bios
def test_a_floppy_without_a_boot_record(start_guest: StartGuest, tmp_path: Path) -> None:
    floppy = tmp_path / "floppy.img"
    floppy.write_bytes(bytes(1440 << 10))
    words = ("--memory", "32M", "--net", "none", "--floppy", str(floppy), "--boot", "floppy")
    guest = start_guest(*words, terminal=True)
    guest.expect("Booting from Floppy")
    # A PC's BIOS runs a floppy's first sector, whatever is there.
    guest.type(LEAVE)
    assert guest.wait() == LEFT


@needs_uefi
def test_a_cd_without_a_boot_record_by_uefi(start_guest: StartGuest, tmp_path: Path) -> None:
    iso = without_boot_record(tmp_path / "cd.iso")
    words = ("--firmware", "uefi", "--memory", "256M", "--net", "none", "--cdrom", str(iso))
    guest = start_guest(*words, terminal=True)
    guest.expect("BdsDxe|Shell>|No bootable|Not Found")
    guest.type(LEAVE)
    assert guest.wait() == LEFT


@needs_bios
def test_every_way_of_resetting_in_turn_for_ever(start_guest: StartGuest, tmp_path: Path) -> None:
    """A sector counts in CMOS RAM, which outlives resets, and takes another way each time."""
    ways = list(RESETS.values())
    base = 0x7C90
    table, places = b"", []
    for way in ways:
        places.append(base + 2 * len(ways) + len(table))
        table += way
    # cli; count = CMOS[60h]; CMOS[60h] = (count + 1) % 5; jmp [table + 2 * count]
    count = "fa b060 e670 e471 88c3 fec0 3c05 7202 30c0 88c4 b060 e670 88e0 e671 30ff d1e3 ffa7"
    code = bytes.fromhex(count.replace(" ", "")) + struct.pack("<H", base)
    # The IDT of the triple fault lies at 0x7c50, behind the message.
    sector = bytearray(boot_sector("round", b"\xeb\x3e"))
    sector[0x60 : 0x60 + len(code)] = code
    jumps = struct.pack(f"<{len(places)}H", *places)
    assert 0x60 + len(code) <= base - 0x7C00
    sector[base - 0x7C00 : base - 0x7C00 + len(jumps) + len(table)] = jumps + table
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(sector).ljust(1 << 20, b"\0"))
    words = ("--memory", "16M", "--net", "none", "--disk", str(disk))
    guest = start_guest(*words, terminal=True)
    for _ in range(2 * len(ways)):
        guest.expect("rou")
    guest.type(LEAVE)
    assert guest.wait() == LEFT


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--machine", "pc", "--cpus", "65"], 2, "64"),
        (["--boot", "floppy", "--floppy", "{missing}"], 3, "missing"),
        (["--boot", "tape"], 2, "tape"),
        (["--boot", "cdrom,cdrom"], 2, "cdrom"),
        (["--machine", "q35", "--memory", "1M"], 2, "too little"),
    ],
)
def test_what_is_refused(
    start_guest: StartGuest, tmp_path: Path, words: list[str], code: int, text: str
) -> None:
    guest = start_guest(*(word.format(missing=tmp_path / "missing.img") for word in words), stdin=False)
    assert guest.wait() == code, guest.report("another exit code")
    assert text in guest.errors.decode()
    assert "Traceback" not in guest.errors.decode()
