"""A Linux kernel of the user's that the firmware boots: the items of fw_cfg that UEFI takes it from.

Reference: QEMU docs/specs/fw_cfg.rst; QEMU hw/i386/x86.c as to what each item holds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from sublet.devices.platform import fw_cfg as fc
from sublet.errors import UnsupportedImage, UsageError
from sublet.machine.boot.files import open_boot_file
from sublet.machine.boot.linux import is_bzimage, read_header
from sublet.machine.config import MachineConfig
from sublet.machine.memory_map import MIB

_PROBE = 0x210


def offer_kernel(fw_cfg: fc.FwCfg, config: MachineConfig) -> None:
    """Add kernel, RAM disk and command line, if the machine has a kernel; files are read when asked for.

    Raises:
        UsageError: The firmware is not UEFI, a file is missing, or there is not the memory for them.
        ImageError: The kernel is no bzImage.
        HostRefused: A file cannot be read.
    """
    if config.kernel is None:
        return
    if config.firmware != "uefi" or config.modules:
        raise UsageError(
            "of all firmware only UEFI starts a kernel, and only a Linux bzImage without modules",
            remedy="Add --firmware uefi and leave out --module, or choose --machine microvm.",
        )
    setup_size, kernel_size = _measure(config.kernel)
    initrd_size = 0 if config.initrd is None else _size(config.initrd, "initrd")
    _check_memory(config, setup_size + kernel_size + initrd_size)
    _add(fw_cfg, fc.SETUP_SIZE, fc.SETUP_DATA, setup_size, _part(config.kernel, 0, setup_size))
    _add(fw_cfg, fc.KERNEL_SIZE, fc.KERNEL_DATA, kernel_size, _part(config.kernel, setup_size, kernel_size))
    if config.initrd is not None:
        _add(fw_cfg, fc.INITRD_SIZE, fc.INITRD_DATA, initrd_size, _part(config.initrd, 0, initrd_size))
    cmdline = config.cmdline.encode() + b"\0"
    _add(fw_cfg, fc.CMDLINE_SIZE, fc.CMDLINE_DATA, len(cmdline), cmdline)


def _measure(kernel: Path) -> tuple[int, int]:
    """Bytes of the real-mode part and of the rest."""
    with open_boot_file(kernel, "kernel") as file:
        if not is_bzimage(file.read(0, min(_PROBE, file.size), "the header")):
            raise UnsupportedImage(
                f"the kernel {kernel} is no Linux bzImage, which is what UEFI starts",
                remedy="Give a kernel such as /boot/vmlinuz-*, or choose --machine microvm.",
            )
        header = read_header(file)
        return header.kernel_offset, header.kernel_size


def _size(path: Path, what: str) -> int:
    with open_boot_file(path, what) as file:
        return file.size


def _check_memory(config: MachineConfig, size: int) -> None:
    """What the firmware copies must fit; how much more the kernel wants, it says itself."""
    if size > config.memory_mib * MIB // 2:
        raise UsageError(
            f"kernel and initrd have {size / MIB:.1f} MiB, the machine has {config.memory_mib} MiB of memory",
            remedy="Give more --memory.",
        )


def _part(path: Path, start: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        with open_boot_file(path, "file") as file:
            return file.read(start, size, "what the firmware asks for")

    return read


def _add(fw_cfg: fc.FwCfg, size_item: int, data_item: int, size: int, content: fc.Content) -> None:
    fw_cfg.add_item(size_item, struct.pack("<I", size))
    fw_cfg.add_item(data_item, content)
