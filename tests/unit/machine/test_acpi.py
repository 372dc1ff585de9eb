"""ACPI tables: checksums, pointers, encodings; Intel's compiler as the judge where it is installed."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from sublet.machine import memory_map as mm
from sublet.machine.acpi import aml, build_tables

WINDOW = (0x40_0000_0000, 0x50_0000_0000)
SIGNATURES = ("XSDT", "DSDT", "FACP", "APIC", "MCFG")


def table(blob: bytes, gpa: int) -> bytes:
    (length,) = struct.unpack_from("<I", blob, gpa - mm.ACPI_BASE + 4)
    return blob[gpa - mm.ACPI_BASE :][:length]


def find_tables(blob: bytes) -> dict[str, bytes]:
    """Follow the pointers as a guest does."""
    (xsdt_gpa,) = struct.unpack_from("<Q", blob, 24)
    xsdt = table(blob, xsdt_gpa)
    found = {"XSDT": xsdt}
    for (gpa,) in struct.iter_unpack("<Q", xsdt[36:]):
        data = table(blob, gpa)
        found[data[:4].decode()] = data
    (dsdt_gpa,) = struct.unpack_from("<Q", found["FACP"], 140)
    return found | {"DSDT": table(blob, dsdt_gpa)}


@pytest.mark.parametrize("cpus", [1, 4, 255, 300])
def test_every_table_is_reachable_and_sums_to_zero(cpus: int) -> None:
    blob = build_tables(cpus, WINDOW)
    assert blob.startswith(b"RSD PTR ")
    assert sum(blob[:20]) & 0xFF == sum(blob[:36]) & 0xFF == 0
    tables = find_tables(blob)
    assert sorted(tables) == sorted(SIGNATURES)
    assert all(sum(data) & 0xFF == 0 for data in tables.values())


def test_facs_is_aligned() -> None:
    blob = build_tables(1, WINDOW)
    (gpa,) = struct.unpack_from("<I", find_tables(blob)["FACP"], 36)
    assert gpa % 64 == 0
    assert blob[gpa - mm.ACPI_BASE :].startswith(b"FACS")


@pytest.mark.parametrize("cpus", [1, 3])
def test_intels_compiler_reads_every_table(tmp_path: Path, cpus: int) -> None:
    iasl = shutil.which("iasl")
    if iasl is None:
        pytest.skip("iasl is not installed (scripts/install-test-packages)")
    for name, data in find_tables(build_tables(cpus, WINDOW)).items():
        binary = tmp_path / f"{name}.dat"
        binary.write_bytes(data)
        assert _output([iasl, "-d", str(binary)]).count("Invalid") == 0
    compiled = _output([iasl, str(tmp_path / "DSDT.dsl")])
    assert "0 Errors, 0 Warnings" in compiled


def _output(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return result.stdout + result.stderr


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0x100, "0b0001"),
        (0x1_0000, "0c00000100"),
        (1 << 32, "0e0000000001000000"),
    ],
)
def test_integers_take_their_shortest_form(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("_SB", b"_SB_"),
        ("\\_SB", b"\\_SB_"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("^A.B.C", b"^\x2f\x03A___B___C___"),
        ("\\", b"\\\x00"),
    ],
)
def test_names_are_padded_and_prefixed(path: str, encoded: bytes) -> None:
    assert aml.name_string(path) == encoded


@pytest.mark.parametrize("path", ["TOOLONG", "1ABC", "A.", "lower", "A-B"])
def test_bad_names_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not an AML name"):
        aml.name_string(path)


@pytest.mark.parametrize("size", [0, 1, 60, 61, 62, 63, 64, 4090, 4093, 4096, 70000])
def test_package_lengths_count_themselves(size: int) -> None:
    encoded = aml.scope("ABCD", bytes(size))
    extra = encoded[1] >> 6
    length = encoded[1] & (0x0F if extra else 0x3F)
    length |= int.from_bytes(encoded[2 : 2 + extra], "little") << 4
    assert length == len(encoded) - 1


def test_eisa_identifiers() -> None:
    assert aml.eisa_id("PNP0A08").hex() == "0c41d00a08"
