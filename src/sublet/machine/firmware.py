"""The firmware that a machine starts with: where its images are, and what it needs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sublet.errors import HostRefused, UnsupportedImage, UsageError
from sublet.machine.boot.files import open_boot_file
from sublet.machine.config import MachineConfig
from sublet.machine.memory_map import MIB, PAGE_SIZE

FIRMWARE_DIRECTORIES: Final = tuple(
    Path(directory)
    for directory in (
        "/usr/share/seabios",
        "/usr/share/OVMF",
        "/usr/lib/ipxe/qemu",
        "/usr/share/qemu",
        "/usr/share/edk2/x64",
        "/usr/share/edk2/ovmf",
    )
)
"""Where distributions put images."""

FOLDERS_VARIABLE: Final = "SUBLET_FIRMWARE_FOLDERS"
"""Folders to look into in place of those, separated by colons; empty: none."""
VIDEO_BIOS: Final = ("vgabios-stdvga.bin",)
E1000_ROM: Final = ("efi-e1000.rom",)
VIRTIO_ROM: Final = ("efi-virtio.rom",)
"""Of iPXE: each has an image for the BIOS and one for UEFI."""

_BIOS: Final = ("bios-256k.bin", "bios.bin")
_UEFI_CODE: Final = ("OVMF_CODE_4M.fd", "OVMF_CODE.4m.fd", "OVMF_CODE.fd")
_UEFI_VARIABLES: Final = ("OVMF_VARS_4M.fd", "OVMF_VARS.4m.fd", "OVMF_VARS.fd")
_SECURE_CODE: Final = ("OVMF_CODE_4M.secboot.fd", "OVMF_CODE.secboot.4m.fd", "OVMF_CODE.secboot.fd")
_SECURE_VARIABLES: Final = (
    "OVMF_VARS_4M.ms.fd",
    "OVMF_VARS.secboot.4m.fd",
    "OVMF_VARS.ms.fd",
    "OVMF_VARS.secboot.fd",
)
"""With keys enrolled."""
_MAXIMUM_SIZE: Final = 16 * MIB
_MINIMUM_SIZE: Final = 0x10000
_BIOS_MEMORY_MIB: Final = 4
_UEFI_MEMORY_MIB: Final = 96


@dataclass(frozen=True)
class Firmware:
    """What lies below 4 GiB: code, read-only, and with UEFI a template of the variable store under it."""

    path: Path
    code: bytes
    variables: bytes | None


def find_image(names: tuple[str, ...], more: Iterable[Path] = ()) -> Path | None:
    """The first of these files that this host has.

    Args:
        names: In order of preference.
        more: Folders that are looked into after those where the host has its own.
    """
    folders = (*_installed_folders(), *more)
    for name in names:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    return None


def _installed_folders() -> tuple[Path, ...]:
    named = os.environ.get(FOLDERS_VARIABLE)
    if named is None:
        return FIRMWARE_DIRECTORIES
    return tuple(Path(folder) for folder in named.split(":") if folder)


def missing_packages(config: MachineConfig) -> tuple[str, ...]:
    """Debian's packages that hold what the machine starts with, as far as this host has it not."""
    if config.machine == "microvm":
        return ()
    needed: dict[str, tuple[str, ...]] = {"seabios": VIDEO_BIOS}
    if config.is_uefi:
        needed = {"ovmf": _UEFI_CODE if config.firmware == "uefi" else _SECURE_CODE}
    elif config.firmware != "bios" and config.firmware is not None:
        needed = {}
    elif find_image(_BIOS, config.firmware_folders) is None:
        needed = {"seabios": _BIOS}
    if "network" in config.boot_kinds:
        needed["ipxe-qemu"] = E1000_ROM
    return tuple(
        package for package, names in needed.items() if find_image(names, config.firmware_folders) is None
    )


def load_firmware(config: MachineConfig) -> Firmware:
    """Read the firmware that the definition names.

    Raises:
        UsageError: There is no such file, or the machine has less memory than the firmware needs.
        HostRefused: It is not installed, or cannot be read.
        ImageError: It is no firmware image.
    """
    if isinstance(config.firmware, Path):
        return Firmware(config.firmware, _read(config.firmware), None)
    if config.is_uefi:
        _check_memory(config, "UEFI", _UEFI_MEMORY_MIB)
    if config.firmware == "uefi":
        code = _find("UEFI", "ovmf", _UEFI_CODE, config)
        variables = find_image(_UEFI_VARIABLES[_UEFI_CODE.index(code.name) :], config.firmware_folders)
        return Firmware(code, _read(code), None if variables is None else _read(variables))
    if config.firmware == "uefi-secure":
        return _load_secure(config)
    _check_memory(config, "the BIOS", _BIOS_MEMORY_MIB)
    path = _find("BIOS", "seabios", _BIOS, config)
    return Firmware(path, _read(path), None)


def _load_secure(config: MachineConfig) -> Firmware:
    if config.machine != "q35":
        raise UsageError(
            f"the machine {config.machine} has no Secure Boot: its chipset keeps no memory to itself",
            remedy="Give --machine q35.",
        )
    code = _find("UEFI Secure Boot", "ovmf", _SECURE_CODE, config)
    variables = _find("UEFI Secure Boot", "ovmf", _SECURE_VARIABLES, config)
    return Firmware(code, _read(code), _read(variables))


def _check_memory(config: MachineConfig, what: str, minimum_mib: int) -> None:
    if config.memory_mib < minimum_mib:
        raise UsageError(
            f"{config.memory_mib} MiB of memory is too little for {what}",
            remedy=f"Give at least {minimum_mib} MiB.",
        )


def _find(what: str, package: str, names: tuple[str, ...], config: MachineConfig) -> Path:
    path = find_image(names, config.firmware_folders)
    if path is None:
        raise HostRefused(
            f"there is no {what} firmware on this host",
            remedy=f"Install the package {package}, or name an image by --firmware FILE.",
        )
    return path


def _read(path: Path) -> bytes:
    with open_boot_file(path, "firmware", "Give bios, uefi, uefi-secure, or the path of an image.") as file:
        if not _MINIMUM_SIZE <= file.size <= _MAXIMUM_SIZE or file.size % PAGE_SIZE:
            raise UnsupportedImage(
                f"{path} is no firmware image: it has {file.size} bytes, "
                f"an image has 64 KiB to 16 MiB in pages of 4 KiB"
            )
        return file.read(0, file.size, "the image")
