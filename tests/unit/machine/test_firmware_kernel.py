"""The kernel that firmware is offered, read back as firmware reads it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from tests.unit.machine.images import Bzimage
from tests.unit.machine.test_multiboot import LOAD, flat_1

from sublet.devices.platform import fw_cfg as fc
from sublet.devices.platform.fw_cfg import FwCfg
from sublet.errors import ImageError, UsageError
from sublet.machine.config import MachineConfig
from sublet.machine.firmware_kernel import ROM_FILE, offer_kernel
from sublet.machine.memory_map import MIB, layout
from sublet.testing import FakeGuestMemory


def configure(folder: Path, **fields: Any) -> MachineConfig:
    (folder / "vmlinuz").write_bytes(Bzimage().build())
    (folder / "initrd").write_bytes(b"ram disk")
    words: dict[str, Any] = {
        "machine": "q35",
        "firmware": "uefi",
        "kernel": folder / "vmlinuz",
        "initrd": folder / "initrd",
    }
    return MachineConfig(**{**words, "cmdline": "quiet", **fields})


def offer(config: MachineConfig) -> FwCfg:
    device = FwCfg(FakeGuestMemory())
    offer_kernel(device, config, layout(max(config.memory_mib, 2), config.machine))
    return device


def read_file(device: FwCfg, name: str) -> bytes:
    """What the directory says has that name; nothing if there is none."""
    device.pio_write(0, 2, fc.FILE_DIRECTORY)
    (count,) = struct.unpack(">I", read(device, 4))
    for _ in range(count):
        size, number, _, entry = struct.unpack(">IHH56s", read(device, 64))
        if entry.rstrip(b"\0") == name.encode():
            device.pio_write(0, 2, number)
            return read(device, size)
    return b""


def read(device: FwCfg, size: int) -> bytes:
    return bytes(device.pio_read(1, 1) for _ in range(size))


def read_item(device: FwCfg, size_item: int, data_item: int) -> bytes:
    device.pio_write(0, 2, size_item)
    (size,) = struct.unpack("<I", read(device, 4))
    device.pio_write(0, 2, data_item)
    return read(device, size)


def test_firmware_reads_back_every_byte(tmp_path: Path) -> None:
    device = offer(configure(tmp_path))
    assert read_file(device, ROM_FILE) == b""
    setup = read_item(device, fc.SETUP_SIZE, fc.SETUP_DATA)
    assert len(setup) == 1024
    assert setup + read_item(device, fc.KERNEL_SIZE, fc.KERNEL_DATA) == Bzimage().build()
    assert read_item(device, fc.INITRD_SIZE, fc.INITRD_DATA) == b"ram disk"
    assert read_item(device, fc.CMDLINE_SIZE, fc.CMDLINE_DATA) == b"quiet\0"


def test_without_a_kernel_there_is_nothing(tmp_path: Path) -> None:
    device = offer(configure(tmp_path, kernel=None))
    assert read_item(device, fc.KERNEL_SIZE, fc.KERNEL_DATA) == b""


def test_the_bios_finds_a_header_filled_in_and_a_rom(tmp_path: Path) -> None:
    """The header says where the ROM's table puts command line and RAM disk, below what the BIOS keeps."""
    device = offer(configure(tmp_path, firmware="bios", memory_mib=64))
    setup = read_item(device, fc.SETUP_SIZE, fc.SETUP_DATA)
    initrd, initrd_size = struct.unpack_from("<II", setup, 0x218)
    (cmdline,) = struct.unpack_from("<I", setup, 0x228)
    assert (initrd_size, initrd % 4096, setup[0x210]) == (8, 0, 0xFF)
    assert 17 * MIB <= initrd <= 63 * MIB - 8
    rom = read_file(device, ROM_FILE)
    copies = [struct.unpack_from(">IIQ", rom, 0x200 + 16 * i) for i in range(4)]
    assert [(item >> 16, size, gpa) for item, size, gpa in copies] == [
        (fc.SETUP_DATA, 1024, 0x10000),
        (fc.CMDLINE_DATA, 6, cmdline),
        (fc.KERNEL_DATA, 64, MIB),
        (fc.INITRD_DATA, 8, initrd),
    ]


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ("vga=0x317", 0x317),
        ("vga=791 quiet", 791),
        ("vga=1 vga=ask", 0xFFFD),
        ("vga=", 0),
        ("novga=3", 0),
    ],
)
def test_the_bios_s_kernel_is_told_its_video_mode(tmp_path: Path, words: str, mode: int) -> None:
    """Without one it stays what the kernel was built with, here 0."""
    device = offer(configure(tmp_path, firmware="bios", memory_mib=64, cmdline=words))
    setup = read_item(device, fc.SETUP_SIZE, fc.SETUP_DATA)
    assert struct.unpack_from("<H", setup, 0x1FA) == (mode,)


def test_the_bios_starts_multiboot_kernels(tmp_path: Path) -> None:
    """Every part is an item of its own; the zeroes behind the kernel are part of its copy."""
    (tmp_path / "data").write_bytes(b"module")
    config = configure(tmp_path, firmware="bios", memory_mib=8, initrd=None, modules=(f"{tmp_path}/data x",))
    (tmp_path / "vmlinuz").write_bytes(flat_1(bss=0x1000))
    device = offer(config)
    rom = read_file(device, ROM_FILE)
    (count,) = struct.unpack_from("<H", rom, 0x40)
    copies = [struct.unpack_from(">IIQ", rom, 0x200 + 16 * i) for i in range(count)]
    (_, _, block), (kernel, size, gpa), (module, module_size, module_gpa) = copies
    assert (block, gpa, size) == (0x10000, LOAD, 96 + 0x1000)
    assert (module_size, module_gpa) == (6, LOAD + 0x2000)
    device.pio_write(0, 2, kernel >> 16)
    assert read(device, 97) == flat_1() + b"\0"
    device.pio_write(0, 2, module >> 16)
    assert read(device, 6) == b"module"


@pytest.mark.parametrize(
    ("image", "memory_mib", "problem"),
    [(b"x" * 0x400, 8, "neither"), (flat_1(bss=0x10_0000), 4, "BIOS keeps tables")],
)
def test_multiboot_kernels_that_the_bios_cannot_start(
    tmp_path: Path, image: bytes, memory_mib: int, problem: str
) -> None:
    config = configure(tmp_path, firmware="bios", memory_mib=memory_mib, initrd=None)
    (tmp_path / "vmlinuz").write_bytes(image)
    with pytest.raises((ImageError, UsageError), match=problem):
        offer(config)


@pytest.mark.parametrize(
    "fields",
    [
        {"modules": ("a",)},
        {"memory_mib": 0},
        {"cmdline": "a" * 2048},
        {"firmware": "bios", "memory_mib": 17},
        {"firmware": None, "cmdline": "a\0b"},
    ],
    ids=str,
)
def test_what_cannot_be_started(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        offer(configure(tmp_path, **fields))


def test_setup_code_that_fills_its_segment(tmp_path: Path) -> None:
    config = configure(tmp_path, firmware="bios")
    (tmp_path / "vmlinuz").write_bytes(Bzimage(setup_sects=120).build())
    with pytest.raises(ImageError):
        offer(config)


def test_a_file_that_is_no_bzimage(tmp_path: Path) -> None:
    config = configure(tmp_path)
    (tmp_path / "vmlinuz").write_bytes(b"\x7fELF" + bytes(4096))
    with pytest.raises(ImageError):
        offer(config)


def test_uefi_says_which_firmware_starts_multiboot_kernels(tmp_path: Path) -> None:
    config = configure(tmp_path)
    (tmp_path / "vmlinuz").write_bytes(flat_1())
    with pytest.raises(ImageError, match="Multiboot kernel, which UEFI cannot start") as refused:
        offer(config)
    assert "--firmware bios" in (refused.value.remedy or "")
