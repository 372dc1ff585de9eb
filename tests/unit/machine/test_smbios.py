"""SMBIOS tables, read by dmidecode where it is."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from sublet.machine.smbios import SmbiosFiles, build_smbios, machine_uuid


def build(*, version_3: bool) -> SmbiosFiles:
    return build_smbios(machine="q35", name="web", cpus=2, memory_mib=20 * 1024, version_3=version_3)


def structures(tables: bytes) -> list[tuple[int, bytes]]:
    """Type and formatted area of each structure, walked as DSP0134 §6.1 says."""
    found, at = [], 0
    while at < len(tables):
        kind, length = tables[at], tables[at + 1]
        found.append((kind, tables[at : at + length]))
        at = tables.index(b"\0\0", at + length) + 2
    return found


def test_entry_points_add_up() -> None:
    """§5.2.1 and §5.2.2: the bytes of an entry point add up to zero."""
    old, new = build(version_3=False), build(version_3=True)
    assert (old.anchor[:4], len(old.anchor), sum(old.anchor) & 0xFF) == (b"_SM_", 31, 0)
    assert sum(old.anchor[16:]) & 0xFF == 0
    assert struct.unpack_from("<H", old.anchor, 22)[0] == len(old.tables)
    assert (new.anchor[:5], len(new.anchor), sum(new.anchor) & 0xFF) == (b"_SM3_", 24, 0)


def test_every_structure_is_there_and_has_its_length() -> None:
    """Lengths of §7.2, §7.4, §7.5, §7.17, §7.18 and §7.20 for the versions that we build."""
    found = structures(build(version_3=False).tables)
    lengths = {1: 0x1B, 3: 0x16, 4: 0x2A, 16: 0x17, 17: 0x28, 19: 0x0F, 32: 0x0B, 127: 4}
    assert [kind for kind, _ in found] == [1, 3, 4, 4, 16, 17, 17, 19, 32, 127]
    assert {kind: len(body) for kind, body in found} == lengths


def test_the_uuid_is_the_names() -> None:
    assert machine_uuid("web") == machine_uuid("web") != machine_uuid("db")
    assert machine_uuid(None).int == 0


@pytest.mark.skipif(shutil.which("dmidecode") is None, reason="needs dmidecode")
def test_dmidecode_reads_them(tmp_path: Path) -> None:
    files = build(version_3=False)
    anchor = bytearray(files.anchor)
    anchor[24:28] = struct.pack("<I", 32)
    anchor[21] = 0
    anchor[21] = -sum(anchor[16:]) & 0xFF
    dump = tmp_path / "dump"
    dump.write_bytes(bytes(anchor).ljust(32, b"\0") + files.tables)
    printed = subprocess.run(["dmidecode", "--from-dump", dump], check=True, capture_output=True, text=True)
    for line in ("Product Name: q35", "Serial Number: web", "Size: 16 GB", "Size: 4 GB", "CPU 1"):
        assert line in printed.stdout, printed.stdout
    assert "<TRUNCATED>" not in printed.stdout
    assert "<BAD INDEX>" not in printed.stdout
