"""The MP table, read back as the specification lays it out."""

from __future__ import annotations

import struct

import pytest

from sublet.machine.mp_table import build_mp_table

SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}
BASE = 0xFF000


def entries(blob: bytes) -> list[bytes]:
    """The entries of the base table, whose number and length must agree."""
    (count,) = struct.unpack_from("<H", blob, 16 + 34)
    found, at = [], 16 + 44
    for _ in range(count):
        size = SIZES[blob[at]]
        found.append(blob[at : at + size])
        at += size
    assert at == len(blob)
    return found


@pytest.mark.parametrize("cpus", [1, 2, 64])
def test_checksums_lengths_and_processors(cpus: int) -> None:
    blob = build_mp_table(cpus, BASE)
    assert blob[:4] == b"_MP_"
    assert struct.unpack_from("<I", blob, 4) == (BASE + 16,)
    assert sum(blob[:16]) % 256 == 0
    assert blob[16:20] == b"PCMP"
    assert sum(blob[16:]) % 256 == 0
    assert struct.unpack_from("<H", blob, 20) == (len(blob) - 16,)
    processors = [entry for entry in entries(blob) if entry[0] == 0]
    assert [entry[1] for entry in processors] == list(range(cpus))
    assert [entry[3] for entry in processors] == [3] + [1] * (cpus - 1)
    assert len(blob) <= 0x1000


def test_interrupts() -> None:
    """Source to I/O APIC input: the timer at 2, the others as they are, PCI pins by their slot."""
    routes = {(e[4], e[5]): (e[2], e[7]) for e in entries(build_mp_table(1, BASE)) if e[0] == 3}
    assert routes[1, 0] == (0, 2)
    assert routes[1, 4] == (0, 4)
    assert routes[1, 9] == (0xD, 9)
    assert routes[0, 3 << 2 | 1] == (0xD, 20)
    assert (1, 2) not in routes
