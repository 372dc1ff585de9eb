"""The address map: RAM on both sides of the hole, windows beside it, limits."""

from __future__ import annotations

import itertools

import pytest

from sublet.errors import HostRefused, UsageError
from sublet.machine import memory_map as mm


@pytest.mark.parametrize("memory_mib", [2, 64, 512, 3071, 3072, 3073, 8192, 600 * 1024])
def test_ram_adds_up_and_leaves_the_hole_free(memory_mib: int) -> None:
    layout = mm.layout(memory_mib)
    assert layout.ram_size == memory_mib * mm.MIB
    assert layout.low_ram_end <= mm.LOW_RAM_LIMIT
    assert all(region.gpa >= mm.HIGH_RAM_BASE for region in layout.ram[1:])
    assert layout.pci_high_window[0] >= layout.ram[-1].end


@pytest.mark.parametrize("memory_mib", [2, 512, 8192])
def test_e820_is_sorted_and_does_not_overlap(memory_mib: int) -> None:
    entries = mm.layout(memory_mib).e820()
    for before, after in itertools.pairwise(entries):
        assert before.gpa + before.size <= after.gpa
    assert all(entry.size > 0 for entry in entries)


def test_e820_reserves_tables_and_ecam() -> None:
    reserved = [(e.gpa, e.size) for e in mm.layout(512).e820() if e.kind == mm.E820_RESERVED]
    assert (mm.ACPI_BASE, mm.ACPI_END - mm.ACPI_BASE) in reserved
    assert (mm.ECAM_BASE, mm.ECAM_SIZE) in reserved


@pytest.mark.parametrize("memory_mib", [-1, 0, 1])
def test_too_little_memory_is_a_usage_error(memory_mib: int) -> None:
    with pytest.raises(UsageError, match=f"{memory_mib} MiB"):
        mm.layout(memory_mib)


def test_more_memory_than_the_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mm, "host_memory_mib", lambda: 4096)
    mm.check_host_memory(4096)
    with pytest.raises(HostRefused, match=r"1000000 MiB.*4096 MiB"):
        mm.check_host_memory(10**6)
