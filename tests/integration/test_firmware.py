"""Machines with firmware, from power-on: what they boot, how they reset, what they say when they cannot."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.integration.conftest import StartGuest
from tests.integration.test_boot import PROMPT

from sublet.guest import prepare_guest, silent
from sublet.machine.firmware import find_image

pytestmark = pytest.mark.guest

needs_bios = pytest.mark.skipif(find_image(("bios-256k.bin",)) is None, reason="needs the package seabios")
needs_uefi = pytest.mark.skipif(find_image(("OVMF_CODE_4M.fd",)) is None, reason="needs the package ovmf")
needs_secure = pytest.mark.skipif(
    find_image(("OVMF_CODE_4M.secboot.fd",)) is None, reason="needs the package ovmf"
)

SECTOR = 512
# Print the NUL-terminated text at 0x7c40 by INT 10h; then what comes at 0x7c20.
PRINT = bytes.fromhex("31c0 8ed8 be407c fc ac 84c0 7409 b40e bb0700 cd10 ebf2 eb08".replace(" ", ""))
POWER_OFF = bytes.fromhex("ba0406 b80034 ef f4".replace(" ", ""))
"""S5 at the PM1 control port, where SeaBIOS put it: OUT 604h, 3400h."""
RESETS = {
    "keyboard controller": bytes.fromhex("b0fe e664 f4".replace(" ", "")),
    "port 92h": bytes.fromhex("b001 e692 f4".replace(" ", "")),
    "port CF9h": bytes.fromhex("baf90c b002 ee b006 ee f4".replace(" ", "")),
    "triple fault": bytes.fromhex("0f011e507c cc f4".replace(" ", "")),
    "far jump to the BIOS": bytes.fromhex("ea f0ff 00f0".replace(" ", "")),
}


def boot_sector(text: str, code: bytes) -> bytes:
    """A sector that prints ``text`` and runs ``code``; the six bytes at 0x7c50 are an empty IDT.

    The BIOS holds the last characters of a line back on a serial console: expect those before them.
    """
    sector = bytearray(SECTOR)
    sector[: len(PRINT)] = PRINT
    sector[0x20 : 0x20 + len(code)] = code
    message = text.encode() + b"\r\n\0"
    assert len(PRINT) <= 0x20
    assert len(message) <= 16
    sector[0x40 : 0x40 + len(message)] = message
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    return path


@needs_bios
@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("bus", ["virtio", "own"])
def test_the_bios_boots_a_sector(start_guest: StartGuest, disk: Path, machine: str, bus: str) -> None:
    disk.write_bytes(boot_sector("hello sector", POWER_OFF).ljust(1 << 20, b"\0"))
    kind = "" if bus == "own" else f",bus={bus}"
    guest = start_guest(
        "--machine",
        machine,
        "--firmware",
        "bios",
        "--memory",
        "32M",
        "--net",
        "none",
        "--disk",
        f"{disk}{kind}",
    )
    guest.expect("hello sec")
    assert guest.wait() == 0, guest.report("no power-off")


def test_a_small_firmware_of_the_users_own(start_guest: StartGuest, tmp_path: Path) -> None:
    """64 KiB, the smallest there is. It ends with the reset vector, and prints on the serial port."""
    code = bytes.fromhex("baf803 b06f ee b06b ee b00a ee ba0406 b80034 ef f4".replace(" ", ""))
    rom = tmp_path / "own.rom"
    rom.write_bytes(code.ljust(0xFFF0, b"\0") + bytes.fromhex("ea000000f0").ljust(16, b"\0"))
    guest = start_guest("--machine", "pc", "--firmware", str(rom), "--memory", "16M", "--net", "none")
    guest.expect("ok")


@needs_bios
@pytest.mark.parametrize("way", list(RESETS))
def test_every_way_of_resetting(start_guest: StartGuest, disk: Path, way: str) -> None:
    disk.write_bytes(boot_sector("resetting", RESETS[way]).ljust(1 << 20, b"\0"))
    guest = start_guest("--memory", "32M", "--net", "none", "--disk", str(disk))
    guest.expect("resett")
    guest.expect("SeaBIOS")
    guest.expect("resett")


@needs_bios
@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("status", [0x05, 0x0A])
def test_a_reset_that_returns(start_guest: StartGuest, disk: Path, machine: str, status: int) -> None:
    """As systems left an 80286's protected mode: the BIOS jumps to 0:7c60h, which says so on COM1."""
    # mov word [467h], 7c60h; mov [469h], ds; CMOS 0fh = status; reset by the keyboard controller
    code = f"c7066704607c 8c1e6904 b00fe670 b0{status:02x}e671 b0fee664 f4"
    sector = bytearray(boot_sector("resetting", bytes.fromhex(code.replace(" ", ""))))
    back = bytes.fromhex("baf803 b042 ee b061 ee b063 ee b06b ee fa f4")
    sector[0x60 : 0x60 + len(back)] = back
    disk.write_bytes(bytes(sector).ljust(1 << 20, b"\0"))
    guest = start_guest("--machine", machine, "--memory", "32M", "--net", "none", "--disk", str(disk))
    guest.expect("resett")
    guest.expect("Back")
    assert guest.output.count(b"resett") == 1


@needs_bios
def test_a_disk_without_a_boot_record(start_guest: StartGuest, disk: Path) -> None:
    guest = start_guest("--memory", "32M", "--net", "none", "--disk", str(disk), terminal=True)
    guest.expect("not a bootable disk")
    guest.expect("No bootable device")
    guest.type("\x1d")
    assert guest.wait() == 130


@needs_bios
def test_the_boot_order(start_guest: StartGuest, disk: Path, tmp_path: Path) -> None:
    disk.write_bytes(boot_sector("from disk", POWER_OFF).ljust(1 << 20, b"\0"))
    floppy = tmp_path / "floppy.img"
    floppy.write_bytes(boot_sector("from floppy", POWER_OFF).ljust(1440 << 10, b"\0"))
    words = ("--memory", "32M", "--net", "none", "--disk", str(disk), "--floppy", str(floppy))
    start_guest(*words, "--boot", "floppy").expect("from flo")
    start_guest(*words, "--boot", "disk,floppy").expect("from d")


@needs_bios
@pytest.mark.parametrize(
    ("machine", "buses"), [("pc", ("", "")), ("q35", ("", "")), ("pc", (",bus=virtio", ""))]
)
def test_the_boot_order_by_device(
    start_guest: StartGuest, tmp_path: Path, machine: str, buses: tuple[str, str]
) -> None:
    words = ["--machine", machine, "--memory", "32M", "--net", "none"]
    for number, bus in enumerate(buses, start=1):
        disk = tmp_path / f"disk{number}"
        disk.write_bytes(boot_sector(f"from disk {number}..", POWER_OFF).ljust(1 << 20, b"\0"))
        words += ["--disk", f"{disk}{bus}"]
    start_guest(*words, "--boot", "disk:2").expect("from disk 2")
    start_guest(*words, "--boot", "disk:1,disk:2").expect("from disk 1")


@needs_bios
@pytest.mark.skipif(find_image(("efi-e1000.rom",)) is None, reason="needs the package ipxe-qemu")
@pytest.mark.parametrize(("machine", "model"), [("pc", "e1000"), ("pc", "virtio"), ("q35", "virtio")])
def test_booting_from_the_network(start_guest: StartGuest, tmp_path: Path, machine: str, model: str) -> None:
    """iPXE configures itself by DHCP, fetches a script by TFTP and runs it; by virtio of both kinds."""
    (tmp_path / "boot.ipxe").write_text("#!ipxe\necho fetched and run\nprompt\n")
    network = f"nat,tftp={tmp_path},bootfile=boot.ipxe,model={model}"
    guest = start_guest("--machine", machine, "--boot", "network", "--memory", "64M", "--net", network)
    guest.expect("fetched and run")


@needs_uefi
def test_uefi_says_that_a_disk_does_not_boot(start_guest: StartGuest, disk: Path) -> None:
    """It tries the network for minutes then, and comes to its shell."""
    guest = start_guest("--firmware", "uefi", "--memory", "256M", "--net", "none", "--disk", str(disk))
    guest.expect("failed to load Boot0001 .*disk0.*Not Found")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--firmware", "/nowhere/bios.bin"], 2, "there is no firmware at /nowhere/bios.bin"),
        (["--firmware", "{disk}", "--memory", "32M"], 4, "no firmware image"),
        (["--machine", "pc", "--memory", "2M"], 2, "too little"),
        (["--firmware", "uefi", "--memory", "32M"], 2, "too little"),
        (["--machine", "pc", "--firmware", "uefi-secure"], 2, "Give --machine q35"),
        (["--cdrom", "{disk}.iso"], 3, ".iso"),
        (["--boot", "cdrom:2", "--cdrom", "none"], 2, "no such device"),
    ],
)
def test_machines_that_cannot_start(
    start_guest: StartGuest, tmp_path: Path, words: list[str], code: int, text: str
) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(struct.pack("<I", 0) * 100)
    guest = start_guest(*(word.format(disk=odd) for word in words), stdin=False)
    assert guest.wait() == code, guest.report("another exit code")
    assert text in guest.errors.decode()
    assert "Traceback" not in guest.errors.decode()


@needs_uefi
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_uefi_starts_a_kernel(start_guest: StartGuest, machine: str) -> None:
    files = prepare_guest("default-amd64", silent)
    words = [
        "--kernel",
        str(files.kernel),
        "--initrd",
        str(files.initrd),
        "--append",
        "console=ttyS0 mark quiet",
    ]
    guest = start_guest(*words, "--machine", machine, "--firmware", "uefi", "--net", "none")
    guest.expect(PROMPT, timeout_s=120)
    guest.type("stty -echo\n")
    guest.expect(PROMPT)
    assert guest.run("cat /proc/cmdline").split()[:2] == ["console=ttyS0", "mark"]
    assert "efi" in guest.run("ls /sys/firmware").split()
    guest.type("poweroff\n")
    assert guest.wait() == 0, guest.report("another exit code")


@needs_bios
@pytest.mark.parametrize(("machine", "guest_name"), [("pc", "default-686"), ("q35", "default")])
def test_the_bios_starts_a_guest_by_name(start_guest: StartGuest, machine: str, guest_name: str) -> None:
    """By the kernel's 16-bit entry, so with the BIOS's memory map and tables."""
    guest = start_guest(guest_name, "--machine", machine, "--append", "mark", "--net", "none")
    guest.expect(PROMPT, timeout_s=120)
    guest.type("stty -echo\n")
    guest.expect(PROMPT)
    assert guest.run("cat /proc/cmdline").split() == ["console=ttyS0", "quiet", "mark"]
    assert "BIOS" in guest.run("dmesg | grep DMI:")
    guest.type("poweroff\n")
    assert guest.wait() == 0, guest.report("another exit code")


@needs_secure
def test_secure_boot_firmware_keeps_its_variables_in_smm(start_guest: StartGuest, disk: Path) -> None:
    """Its boot entries are variables, which only code in system-management mode can write."""
    guest = start_guest("--firmware", "uefi-secure", "--memory", "256M", "--net", "none", "--disk", str(disk))
    guest.expect("failed to load Boot0001 .*disk0.*Not Found", timeout_s=120)
