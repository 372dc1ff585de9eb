"""The kernel that UEFI is offered, read back as firmware reads it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.unit.machine.images import Bzimage

from sublet.devices.platform import fw_cfg as fc
from sublet.devices.platform.fw_cfg import FwCfg
from sublet.errors import ImageError, UsageError
from sublet.machine.config import MachineConfig
from sublet.machine.firmware_kernel import offer_kernel
from sublet.testing import FakeGuestMemory


def configure(folder: Path, **fields: object) -> MachineConfig:
    (folder / "vmlinuz").write_bytes(Bzimage().build())
    (folder / "initrd").write_bytes(b"ram disk")
    words = {"machine": "q35", "firmware": "uefi", "kernel": folder / "vmlinuz", "initrd": folder / "initrd"}
    return MachineConfig.model_validate({**words, "cmdline": "quiet", **fields})


def read_item(device: FwCfg, size_item: int, data_item: int) -> bytes:
    device.pio_write(0, 2, size_item)
    (size,) = struct.unpack("<I", bytes(device.pio_read(1, 1) for _ in range(4)))
    device.pio_write(0, 2, data_item)
    return bytes(device.pio_read(1, 1) for _ in range(size))


def test_firmware_reads_back_every_byte(tmp_path: Path) -> None:
    device = FwCfg(FakeGuestMemory())
    offer_kernel(device, configure(tmp_path))
    setup = read_item(device, fc.SETUP_SIZE, fc.SETUP_DATA)
    assert len(setup) == 1024
    assert setup + read_item(device, fc.KERNEL_SIZE, fc.KERNEL_DATA) == Bzimage().build()
    assert read_item(device, fc.INITRD_SIZE, fc.INITRD_DATA) == b"ram disk"
    assert read_item(device, fc.CMDLINE_SIZE, fc.CMDLINE_DATA) == b"quiet\0"


def test_without_a_kernel_there_is_nothing(tmp_path: Path) -> None:
    device = FwCfg(FakeGuestMemory())
    offer_kernel(device, configure(tmp_path, kernel=None))
    assert read_item(device, fc.KERNEL_SIZE, fc.KERNEL_DATA) == b""


@pytest.mark.parametrize(
    "fields", [{"firmware": "bios"}, {"firmware": None}, {"modules": ("a",)}, {"memory_mib": 0}], ids=str
)
def test_what_cannot_be_started(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        offer_kernel(FwCfg(FakeGuestMemory()), configure(tmp_path, **fields))


def test_a_file_that_is_no_bzimage(tmp_path: Path) -> None:
    config = configure(tmp_path)
    (tmp_path / "vmlinuz").write_bytes(b"\x7fELF" + bytes(4096))
    with pytest.raises(ImageError):
        offer_kernel(FwCfg(FakeGuestMemory()), config)
