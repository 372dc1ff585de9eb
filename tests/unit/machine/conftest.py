"""Fixtures: a machine's RAM without an engine."""

from __future__ import annotations

import pytest

from sublet.machine import memory_map as mm
from sublet.testing.fake_engine import FakeVmMemory

MEMORY_MIB = 64


@pytest.fixture
def layout() -> mm.MemoryMap:
    return mm.layout(MEMORY_MIB)


@pytest.fixture
def memory(layout: mm.MemoryMap) -> FakeVmMemory:
    ram = FakeVmMemory()
    for slot, region in enumerate(layout.ram):
        ram.set_slot(slot, region.gpa, region.size)
    return ram
