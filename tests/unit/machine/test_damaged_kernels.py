"""Kernels with bytes changed at random: an error of ours or a boot, nothing else."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.machine.images import Bzimage, Elf
from tests.unit.machine.test_multiboot import flat_1, header_2, tag

from sublet.errors import SubletError
from sublet.machine import memory_map as mm
from sublet.machine.boot import load_kernel
from sublet.testing.fake_engine import FakeVmMemory

IMAGES = {
    "bzImage": Bzimage().build(),
    "32-bit bzImage": Bzimage(xloadflags=0).build(),
    "ELF64": Elf().build(),
    "ELF32": Elf(is_64=False).build(),
    "multiboot": flat_1(),
    "multiboot2": header_2(tag(2, bytes(16)), tag(3, bytes(4)), tag(1, bytes(8))).ljust(600, b"\x90"),
}
SETTINGS = settings(
    max_examples=300,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
CHANGES = st.lists(st.tuples(st.integers(0, 0x300), st.integers(0, 255)), min_size=1, max_size=6)


@pytest.mark.parametrize("name", IMAGES)
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
@given(changes=CHANGES, length=st.integers(0, 4096))
def test_damage_never_escapes(
    tmp_path: Path,
    memory: FakeVmMemory,
    layout: mm.MemoryMap,
    name: str,
    changes: list[tuple[int, int]],
    length: int,
) -> None:
    image = bytearray(IMAGES[name])
    for offset, value in changes:
        image[offset % len(image)] = value
    kernel = tmp_path / "kernel"
    kernel.write_bytes(image[:length])
    with contextlib.suppress(SubletError):
        load_kernel(kernel, None, "", memory, layout, mm.ACPI_BASE)
