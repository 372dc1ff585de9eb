"""The ACPI and MP files of fw_cfg, made from what the firmware has set up by the time it reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sublet.machine import memory_map as mm
from sublet.machine.acpi.firmware_tables import FirmwareAcpi, Range, TableFiles, build_table_files
from sublet.machine.acpi.linker import (
    LOADER_FILE,
    MP_POINTER_FILE,
    MP_TABLE_FILE,
    RSDP_FILE,
    TABLES_FILE,
)

if TYPE_CHECKING:
    from sublet.machine.firmware_board import FirmwareBoard

_HIGH_WINDOW_SIZE: Final = 64 * mm.GIB
_WINDOW_ALIGNMENT: Final = mm.GIB


def add_acpi_files(board: FirmwareBoard) -> None:
    """Give the board's fw_cfg the tables and the script that links them."""

    def build() -> TableFiles:
        return build_table_files(_describe(board))

    board.fw_cfg.add_file(TABLES_FILE, lambda: build().tables)
    board.fw_cfg.add_file(RSDP_FILE, lambda: build().rsdp)
    board.fw_cfg.add_file(LOADER_FILE, lambda: build().script)
    if not board.config.is_uefi:
        board.fw_cfg.add_file(MP_TABLE_FILE, lambda: build().mp_table)
        board.fw_cfg.add_file(MP_POINTER_FILE, lambda: build().mp_pointer)


def _describe(board: FirmwareBoard) -> FirmwareAcpi:
    routes = (board.router.isa_irq(pirq) for pirq in range(len(board.router.routes)))
    return FirmwareAcpi(
        cpus=board.config.cpus,
        ports=board.power_ports,
        ecam=board.ecam,
        memory_windows=_low_windows(board.memory.layout, board.ecam),
        high_window=_high_window(board),
        isa_gsi=board.isa_gsi,
        apic_gsi=board.apic_gsi(),
        level_irqs=frozenset(irq for irq in routes if irq is not None),
        isa_devices=board.isa_devices(),
        mp_product=None if board.config.is_uefi else board.config.machine.upper(),
    )


def _low_windows(layout: mm.MemoryMap, ecam: Range | None) -> tuple[Range, ...]:
    """What lies between RAM and the interrupt controllers, without extended configuration space."""
    start, end = layout.low_ram_end, mm.IOAPIC_BASE
    if ecam is None or ecam[0] >= end:
        return ((start, end),)
    pieces = ((start, min(ecam[0], end)), (ecam[0] + ecam[1], end))
    return tuple(piece for piece in pieces if piece[0] < piece[1])


def _high_window(board: FirmwareBoard) -> Range:
    """64-bit BARs where the firmware put them; a free range where it put none."""
    ranges = [
        (device.bar_base(bar), device.bar_base(bar) + bar.size)
        for device in board.pci.devices.values()
        for bar in device.bars
        if device.bar_base(bar) >= mm.HIGH_RAM_BASE
    ]
    if not ranges:
        return board.memory.layout.pci_high_window
    start = min(start for start, _ in ranges) // _WINDOW_ALIGNMENT * _WINDOW_ALIGNMENT
    end = -(-max(end for _, end in ranges) // _WINDOW_ALIGNMENT) * _WINDOW_ALIGNMENT
    return start, end
