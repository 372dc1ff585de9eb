"""ACPI tables for firmware to link, linked here as the loader's script says and read by Intel's compiler."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from sublet.machine.acpi import dsdt
from sublet.machine.acpi.firmware_tables import FirmwareAcpi, TableFiles, build_table_files
from sublet.machine.acpi.tables import PowerPorts

PLACES = {
    "etc/acpi/tables": 0x1FFE_0000,
    "etc/acpi/rsdp": 0xF5A40,
    "etc/mp/table": 0x1FFD_F000,
    "etc/mp/pointer": 0xF5A30,
}
TABLES_GPA = PLACES["etc/acpi/tables"]


def describe(express: bool) -> FirmwareAcpi:
    return FirmwareAcpi(
        cpus=2,
        ports=PowerPorts.of_block(0xB000, 0x0C, 4),
        ecam=(0xB000_0000, 0x1000_0000) if express else None,
        memory_windows=((0x2000_0000, 0xFEC0_0000),),
        high_window=(1 << 38, 1 << 39),
        isa_gsi=lambda slot, pin: 10 + pin % 2,
        apic_gsi=(lambda slot, pin: 16 + pin) if express else None,
        level_irqs=frozenset({10, 11}),
        isa_devices=dsdt.serial_port(1, 0x3F8, 4),
        mp_product="Q35" if express else "PC",
    )


class Linked:
    """Memory after a loader has run the script."""

    def __init__(self, files: TableFiles) -> None:
        contents = files.tables, files.rsdp, files.mp_table, files.mp_pointer
        self.files = dict(zip(PLACES, map(bytearray, contents), strict=True))
        self.places: dict[str, int] = {}
        for start in range(0, len(files.script), 128):
            self._execute(files.script[start : start + 128])

    def _execute(self, entry: bytes) -> None:
        command = struct.unpack_from("<I", entry)[0]
        name = entry[4:60].rstrip(b"\0").decode()
        if command == 1:
            self.places[name] = PLACES[name]
            assert (entry[64] == 2) == (PLACES[name] < 1 << 20)
        elif command == 2:
            target = entry[60:116].rstrip(b"\0").decode()
            offset, size = struct.unpack_from("<IB", entry, 116)
            field = slice(offset, offset + size)
            value = int.from_bytes(self.files[name][field], "little") + self.places[target]
            self.files[name][field] = value.to_bytes(size, "little")
        elif command == 3:
            offset, start, length = struct.unpack_from("<III", entry, 60)
            self.files[name][offset] = -sum(self.files[name][start : start + length]) & 0xFF

    def table(self, gpa: int) -> bytes:
        data = self.files["etc/acpi/tables"][gpa - TABLES_GPA :]
        return bytes(data[: struct.unpack_from("<I", data, 4)[0]])

    def by_signature(self) -> dict[bytes, bytes]:
        rsdp = self.files["etc/acpi/rsdp"]
        assert sum(rsdp) & 0xFF == 0
        assert sum(rsdp[:20]) & 0xFF == 0
        rsdt, xsdt = struct.unpack_from("<I", rsdp, 16)[0], struct.unpack_from("<Q", rsdp, 24)[0]
        listed = [gpa for (gpa,) in struct.iter_unpack("<Q", self.table(xsdt)[36:])]
        assert listed == [gpa for (gpa,) in struct.iter_unpack("<I", self.table(rsdt)[36:])]
        tables = {table[:4]: table for table in map(self.table, [rsdt, xsdt, *listed])}
        fadt = tables[b"FACP"]
        dsdt_gpa = struct.unpack_from("<I", fadt, 40)[0]
        assert struct.unpack_from("<Q", fadt, 140)[0] == dsdt_gpa
        tables[b"DSDT"] = self.table(dsdt_gpa)
        assert self.table(struct.unpack_from("<I", fadt, 36)[0])[:4] == b"FACS"
        return tables


@pytest.mark.parametrize("express", [False, True])
def test_linked_tables_are_found_and_add_up(express: bool) -> None:
    tables = Linked(build_table_files(describe(express))).by_signature()
    assert (b"MCFG" in tables) == express
    assert struct.unpack_from("<IBBBBQB", tables[b"HPET"], 36) == (0x8086_A201, 0, 64, 0, 0, 0xFED0_0000, 0)
    for signature, table in tables.items():
        assert sum(table) & 0xFF == 0, signature


@pytest.mark.parametrize("express", [False, True])
def test_the_mp_pointer_leads_to_each_processor_and_pin(express: bool) -> None:
    files = Linked(build_table_files(describe(express))).files
    pointer, table = files["etc/mp/pointer"], files["etc/mp/table"]
    assert sum(pointer) & 0xFF == 0
    assert struct.unpack_from("<I", pointer, 4)[0] == PLACES["etc/mp/table"]
    table = table[: struct.unpack_from("<H", table, 4)[0]]
    assert sum(table) & 0xFF == 0
    assert (table[44:46], table[64:66]) == (b"\0\0", b"\0\1"), "two processors"
    interrupts = {bytes(table[at : at + 8]) for at in range(44 + 2 * 20, len(table), 8)}
    slot_3_pin_b, level = 3 << 2 | 1, 0xD
    assert struct.pack("<BBHBBBB", 3, 0, level, 0, slot_3_pin_b, 0, 17 if express else 11) in interrupts
    isa_11 = struct.pack("<BBHBBBB", 3, 0, 0, 1, 11, 0, 11)
    assert (isa_11 in interrupts) == express, "an input is of one bus"


def test_uefi_places_no_mp_table() -> None:
    files = build_table_files(replace(describe(express=True), mp_product=None))
    assert b"etc/mp" not in files.script


def test_sizes_do_not_depend_on_the_chipsets_state() -> None:
    """Firmware reads the directory, with the files' sizes, before it sets up the chipset."""
    small, large = (build_table_files(describe(express)) for express in (False, True))
    assert len(small.tables) == len(large.tables)
    assert len(small.script) == len(large.script)
    assert len(small.mp_table) == len(large.mp_table)


@pytest.mark.skipif(shutil.which("iasl") is None, reason="needs acpica-tools")
@pytest.mark.parametrize("express", [False, True])
def test_intels_compiler_reads_the_dsdt(express: bool, tmp_path: Path) -> None:
    dsdt_file = tmp_path / "dsdt.aml"
    dsdt_file.write_bytes(Linked(build_table_files(describe(express))).by_signature()[b"DSDT"])
    subprocess.run(["iasl", "-d", dsdt_file], check=True, capture_output=True)
    result = subprocess.run(["iasl", tmp_path / "dsdt.dsl"], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert " 0 Errors, 0 Warnings" in result.stdout, result.stdout
