"""What the firmware is told of its machine through fw_cfg.

Reference: QEMU docs/specs/fw_cfg.rst; SeaBIOS docs "Runtime config".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from sublet.devices.platform import fw_cfg as fc
from sublet.devices.platform.acpi_pm import SLP_TYP_S3
from sublet.machine import memory_map as mm
from sublet.machine.config import MachineConfig
from sublet.machine.smbios import ANCHOR_FILE, TABLES_FILE, build_smbios, machine_uuid

_SLEEP_STATES: Final = bytes((128, 0, 0, 128 | SLP_TYP_S3, 0, 128))
"""S0 to S5, bit 7 for supported: S3, without S4."""
_BOOT_FAIL_WAIT_MS: Final = 60_000

_BOOT_ORDER: Final = ("disk", "cdrom", "floppy", "network")
_CMOS_BOOT_CODES: Final = {"floppy": 1, "disk": 2, "cdrom": 3, "network": 4}
_CMOS_BOOT_FLAG1: Final = 0x38
_CMOS_BOOT_FLAG2: Final = 0x3D
_CMOS_MORE_CPUS: Final = 0x5F
_NO_FLOPPY_SIGNATURE: Final = 1
"""A floppy's boot sector need not end in 55h AAh, as that of old ones does not."""


def describe_machine(
    fw_cfg: fc.FwCfg, config: MachineConfig, layout: mm.MemoryMap, boot_paths: Sequence[str] = ()
) -> None:
    """Add the items that do not depend on what the firmware does itself.

    Args:
        fw_cfg: Where to.
        config: The machine.
        layout: Its memory.
        boot_paths: Devices to try first (`boot_order`).
    """
    fw_cfg.add_item(fc.UUID, machine_uuid(config.name).bytes_le)
    fw_cfg.add_item(fc.RAM_SIZE, struct.pack("<Q", layout.ram_size))
    fw_cfg.add_item(fc.NO_GRAPHIC, struct.pack("<H", 0))
    fw_cfg.add_item(fc.CPU_COUNT, struct.pack("<H", config.cpus))
    fw_cfg.add_item(fc.MAXIMUM_CPUS, struct.pack("<H", config.cpus))
    fw_cfg.add_item(fc.BOOT_MENU, struct.pack("<H", 0))
    fw_cfg.add_item(fc.IRQ0_OVERRIDE, struct.pack("<I", 1))
    fw_cfg.add_file("etc/e820", _memory_map(layout))
    fw_cfg.add_file("etc/max-cpus", struct.pack("<H", config.cpus))
    fw_cfg.add_file("etc/sercon-port", struct.pack("<Q", mm.COM1_PORT))
    fw_cfg.add_file("etc/show-boot-menu", struct.pack("<Q", 0))
    fw_cfg.add_file("etc/boot-fail-wait", struct.pack("<Q", _BOOT_FAIL_WAIT_MS))
    fw_cfg.add_file("etc/system-states", _SLEEP_STATES)
    if boot_paths:
        fw_cfg.add_file("bootorder", "\n".join(boot_paths).encode() + b"\0")
    smbios = build_smbios(
        machine=config.machine,
        name=config.name,
        cpus=config.cpus,
        memory_mib=config.memory_mib,
        version_3=config.is_uefi,
    )
    fw_cfg.add_file(ANCHOR_FILE, smbios.anchor)
    fw_cfg.add_file(TABLES_FILE, smbios.tables)


def cmos_bytes(config: MachineConfig) -> list[tuple[int, int]]:
    """Bytes of the CMOS RAM, as (index, value), that tell the BIOS what fw_cfg does not.

    Reference: SeaBIOS src/hw/rtc.h; the boot order has a nibble a device in 0x3d and the top of 0x38.
    """
    first, second, third, *_ = (*(_CMOS_BOOT_CODES[device] for device in boot_order(config)), 0, 0, 0)
    return [
        (_CMOS_BOOT_FLAG1, third << 4 | _NO_FLOPPY_SIGNATURE),
        (_CMOS_BOOT_FLAG2, second << 4 | first),
        (_CMOS_MORE_CPUS, min(config.cpus - 1, 255)),
    ]


def boot_order(config: MachineConfig) -> tuple[str, ...]:
    """What the firmware tries, every kind once."""
    return tuple(dict.fromkeys((*config.boot_kinds, *_BOOT_ORDER)))


def _memory_map(layout: mm.MemoryMap) -> bytes:
    """RAM alone; the firmware knows what it keeps for itself."""
    return b"".join(struct.pack("<QQI", region.gpa, region.size, mm.E820_RAM) for region in layout.ram)
