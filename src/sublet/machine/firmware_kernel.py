"""A kernel of the user's that the firmware boots, as items of fw_cfg.

UEFI takes the items as they are and starts the kernel by its EFI stub. For the BIOS there is an option ROM of
ours (`kernel_rom`) beside them, which comes first in its boot order, and the setup header is filled in. The
BIOS starts Multiboot kernels, too (`firmware_multiboot`).

Reference: QEMU docs/specs/fw_cfg.rst; QEMU hw/i386/x86.c as to what each item holds; Linux 6.1
Documentation/x86/boot.rst "Details of Header Fields".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sublet.devices.platform import fw_cfg as fc
from sublet.errors import UnsupportedImage, UsageError
from sublet.machine.boot.cmdline import encode_cmdline, video_mode
from sublet.machine.boot.files import open_boot_file
from sublet.machine.boot.initrd import Initrd, InitrdRules, place_initrd
from sublet.machine.boot.linux import SetupHeader, is_bzimage, read_header
from sublet.machine.boot.multiboot_header import find_header
from sublet.machine.config import MachineConfig
from sublet.machine.firmware_multiboot import offer_multiboot
from sublet.machine.kernel_rom import SETUP_GPA, STACK_OFFSET, Copy, build_kernel_rom
from sublet.machine.memory_map import BIOS_TOP, BOOT_CMDLINE, HIGH_MEMORY, MIB, MemoryMap

ROM_FILE: Final = "genroms/linux-kernel.rom"
"""What fw_cfg has under ``genroms/``, the BIOS takes for an option ROM."""
ROM_BOOT_PATH: Final = f"/rom@{ROM_FILE}"
"""Its name in the BIOS's boot order."""

_PROBE: Final = 0x210
_SETUP_MAXIMUM: Final = 0xD000
"""Room for the real-mode part below its heap and stack."""
_VIDEO_MODE: Final = 0x1FA
_LOADER_UNDEFINED: Final = 0xFF
_CAN_USE_HEAP: Final = 0x80


def offer_kernel(fw_cfg: fc.FwCfg, config: MachineConfig, layout: MemoryMap) -> None:
    """Add kernel, RAM disk and command line, if the machine has a kernel; files are read when asked for.

    Raises:
        UsageError: A file is missing, or there is not the memory for them.
        ImageError: The kernel is no bzImage.
        HostRefused: A file cannot be read.
    """
    if config.kernel is None:
        return
    if not _is_linux(config.kernel):
        if config.is_uefi:
            raise _unknown_to_uefi(config.kernel)
        fw_cfg.add_file(ROM_FILE, offer_multiboot(fw_cfg, config, config.kernel, layout))
        return
    if config.modules:
        raise UsageError("a Linux kernel takes no modules", remedy="Leave out --module, or give an --initrd.")
    kernel = _measure(config.kernel, config.initrd)
    _check_memory(config, kernel.header.kernel_offset + kernel.header.kernel_size + kernel.initrd_size)
    cmdline = encode_cmdline(config.cmdline, kernel.header.cmdline_size)
    if config.is_uefi:
        _add_items(fw_cfg, kernel, kernel.setup, cmdline)
        return
    initrd = _place(kernel, layout)
    _add_items(fw_cfg, kernel, _fill_in(kernel, initrd, video_mode(config.cmdline)), cmdline)
    fw_cfg.add_file(ROM_FILE, build_kernel_rom(_copies(kernel, initrd, len(cmdline))))


def _is_linux(kernel: Path) -> bool:
    with open_boot_file(kernel, "kernel") as file:
        return is_bzimage(file.read(0, min(_PROBE, file.size), "the header"))


def _unknown_to_uefi(kernel: Path) -> UnsupportedImage:
    """UEFI's loader starts programs of its own format, which a bzImage is, too."""
    with open_boot_file(kernel, "kernel") as file:
        if find_header(file) is None:
            return UnsupportedImage(
                f"the kernel {kernel} is no Linux bzImage, which is what UEFI starts",
                remedy="Give a kernel such as /boot/vmlinuz-*, or choose --machine microvm for a PVH kernel.",
            )
    return UnsupportedImage(
        f"the kernel {kernel} is a Multiboot kernel, which UEFI cannot start",
        remedy="Choose --firmware bios, or --machine microvm.",
    )


@dataclass(frozen=True)
class _Kernel:
    """The user's files, measured and checked."""

    path: Path
    header: SetupHeader
    setup: bytes
    """The real-mode part."""
    initrd: Path | None
    initrd_size: int


def _measure(kernel: Path, initrd: Path | None) -> _Kernel:
    initrd_size = 0
    if initrd is not None:
        with open_boot_file(initrd, "initrd") as file:
            initrd_size = file.size
    with open_boot_file(kernel, "kernel") as file:
        header = read_header(file)
        setup = file.read(0, header.kernel_offset, "the setup code")
    return _Kernel(kernel, header, setup, initrd, initrd_size)


def _check_memory(config: MachineConfig, size: int) -> None:
    """What the firmware copies must fit; how much more the kernel wants, it says itself."""
    if size > config.memory_mib * MIB // 2:
        raise UsageError(
            f"kernel and initrd have {size / MIB:.1f} MiB, the machine has {config.memory_mib} MiB of memory",
            remedy="Give more --memory.",
        )


def _place(kernel: _Kernel, layout: MemoryMap) -> Initrd:
    """Where the RAM disk goes under the BIOS: above what the kernel unpacks itself into.

    Raises:
        UsageError: It does not fit there.
    """
    header = kernel.header
    end = max(HIGH_MEMORY + header.kernel_size, header.pref_address + header.init_size)
    top = min(header.initrd_addr_max, layout.low_ram_end - BIOS_TOP - 1)
    gpa = place_initrd(kernel.initrd_size, layout, InitrdRules(HIGH_MEMORY, end, top))
    if gpa is None:
        raise UsageError(
            f"the initrd ({kernel.initrd_size / MIB:.1f} MiB) does not fit above the kernel, which ends at "
            f"{end / MIB:.1f} MiB, in {layout.ram_size // MIB} MiB of memory",
            remedy="Give more --memory.",
        )
    return Initrd(gpa, kernel.initrd_size) if kernel.initrd_size else Initrd()


def _fill_in(kernel: _Kernel, initrd: Initrd, mode: int | None) -> bytes:
    """The real-mode part with what a boot loader writes into its header.

    Raises:
        UnsupportedImage: It is too large for its segment.
    """
    setup = bytearray(kernel.setup)
    if len(setup) > _SETUP_MAXIMUM:
        raise UnsupportedImage(f"the kernel {kernel.path} has {len(setup)} bytes of setup code, too many")
    if mode is not None:
        struct.pack_into("<H", setup, _VIDEO_MODE, mode)
    setup[0x210] = _LOADER_UNDEFINED
    setup[0x211] |= _CAN_USE_HEAP
    struct.pack_into("<II", setup, 0x218, initrd.gpa, initrd.size)
    struct.pack_into("<H", setup, 0x224, STACK_OFFSET - 0x200)
    struct.pack_into("<I", setup, 0x228, BOOT_CMDLINE)
    return bytes(setup)


def _copies(kernel: _Kernel, initrd: Initrd, cmdline_size: int) -> list[Copy]:
    copies = [
        Copy(fc.SETUP_DATA, len(kernel.setup), SETUP_GPA),
        Copy(fc.CMDLINE_DATA, cmdline_size, BOOT_CMDLINE),
        Copy(fc.KERNEL_DATA, kernel.header.kernel_size, HIGH_MEMORY),
    ]
    return [*copies, Copy(fc.INITRD_DATA, initrd.size, initrd.gpa)] if initrd.size else copies


def _add_items(fw_cfg: fc.FwCfg, kernel: _Kernel, setup: bytes, cmdline: bytes) -> None:
    offset, size = kernel.header.kernel_offset, kernel.header.kernel_size
    _add(fw_cfg, fc.SETUP_SIZE, fc.SETUP_DATA, len(setup), setup)
    _add(fw_cfg, fc.KERNEL_SIZE, fc.KERNEL_DATA, size, _part(kernel.path, offset, size))
    if kernel.initrd is not None:
        initrd = _part(kernel.initrd, 0, kernel.initrd_size)
        _add(fw_cfg, fc.INITRD_SIZE, fc.INITRD_DATA, kernel.initrd_size, initrd)
    _add(fw_cfg, fc.CMDLINE_SIZE, fc.CMDLINE_DATA, len(cmdline), cmdline)


def _part(path: Path, start: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        with open_boot_file(path, "file") as file:
            return file.read(start, size, "what the firmware asks for")

    return read


def _add(fw_cfg: fc.FwCfg, size_item: int, data_item: int, size: int, content: fc.Content) -> None:
    fw_cfg.add_item(size_item, struct.pack("<I", size))
    fw_cfg.add_item(data_item, content)
