"""Memslots: added, removed and replaced between runs; read-only ones."""

from __future__ import annotations

import pytest
from tests.conformance.engine.guests import CODE, DATA, MMIO, RAM_SIZE, Build, assemble

from sublet.core import EXIT_MMIO_READ, EXIT_MMIO_WRITE, InvalidError, MemoryRangeError, RamBlock

LOAD_TWICE = f"mov ebx, {MMIO:#x}; again: mov eax, [rbx]; out 0x80, eax; jmp again"


def test_an_added_slot_is_ram(built: Build) -> None:
    guest = built(LOAD_TWICE)
    guest.expect(EXIT_MMIO_READ)
    guest.out()
    guest.vm.set_memslot(1, MMIO, 0x1000, RamBlock(0x1000))
    guest.memory.write_u32(MMIO, 0x77)
    assert guest.out() == 0x77


def test_a_removed_slot_is_a_device_again(built: Build) -> None:
    guest = built(LOAD_TWICE)
    guest.vm.set_memslot(1, MMIO, 0x1000, RamBlock(0x1000))
    assert guest.out() == 0
    guest.vm.remove_memslot(1)
    assert guest.expect(EXIT_MMIO_READ).address == MMIO


def test_a_replaced_slot_shows_the_new_memory(built: Build) -> None:
    guest = built(LOAD_TWICE)
    guest.vm.set_memslot(1, MMIO, 0x1000, RamBlock(0x1000))
    assert guest.out() == 0
    other = RamBlock(0x2000)
    guest.vm.set_memslot(1, MMIO, 0x1000, other, 0x1000)
    guest.memory.write_u32(MMIO, 0x99)
    assert guest.out() == 0x99


def test_a_moved_slot_leaves_nothing_behind(built: Build) -> None:
    guest = built(LOAD_TWICE)
    ram = RamBlock(0x1000)
    guest.vm.set_memslot(1, MMIO, 0x1000, ram)
    guest.out()
    guest.vm.set_memslot(1, MMIO + 0x1000, 0x1000, ram)
    guest.expect(EXIT_MMIO_READ)


def test_two_slots_swap_places(built: Build) -> None:
    guest = built(LOAD_TWICE)
    first, second = RamBlock(0x1000), RamBlock(0x1000)
    guest.vm.set_memslot(1, MMIO, 0x1000, first)
    guest.vm.set_memslot(2, MMIO + 0x1000, 0x1000, second)
    guest.memory.write_u32(MMIO + 0x1000, 2)
    assert guest.out() == 0
    guest.vm.remove_memslot(1)
    guest.vm.set_memslot(2, MMIO, 0x1000, second)
    assert guest.out() == 2


def test_code_that_a_device_rewrites_is_the_new_code(built: Build) -> None:
    guest = built("again: mov al, 1; out 0x80, al; jmp again")
    assert guest.out() == 1
    guest.memory.write(CODE + 1, b"\x02")
    assert guest.out() == 2


def test_a_store_to_a_read_only_slot_leaves_and_changes_nothing(built: Build) -> None:
    guest = built(f"mov ebx, {MMIO:#x}; mov dword ptr [rbx], 5; mov eax, [rbx]; out 0x80, eax; hlt")
    guest.vm.set_memslot(1, MMIO, 0x1000, RamBlock(0x1000), readonly=True)
    guest.memory.write_u32(MMIO, 0x1234)
    exit = guest.expect(EXIT_MMIO_WRITE)
    assert (exit.address, exit.size, exit.data) == (MMIO, 4, 5)
    assert guest.out() == 0x1234


def test_read_modify_write_of_a_read_only_slot(built: Build) -> None:
    guest = built(f"mov ebx, {MMIO:#x}; add dword ptr [rbx], 5; out 0x80, al; hlt")
    guest.vm.set_memslot(1, MMIO, 0x1000, RamBlock(0x1000), readonly=True)
    guest.memory.write_u32(MMIO, 0x1000)
    assert guest.expect(EXIT_MMIO_WRITE).data == 0x1005
    guest.out()
    assert guest.memory.read_u32(MMIO) == 0x1000


def test_code_runs_from_a_read_only_slot(built: Build) -> None:
    guest = built(f"mov ebx, {MMIO:#x}; jmp rbx")
    guest.vm.set_memslot(1, MMIO, 0x1000, RamBlock(0x1000), readonly=True)
    guest.memory.write(MMIO, assemble("mov al, 3; out 0x80, al; hlt", MMIO))
    assert guest.out() == 3


def test_one_block_of_ram_may_appear_twice(built: Build) -> None:
    guest = built(f"mov ebx, {MMIO:#x}; mov dword ptr [rbx], 6; mov eax, [{DATA}]; out 0x80, eax; hlt")
    guest.vm.set_memslot(1, MMIO, 0x1000, guest.ram, DATA)
    assert guest.out() == 6


@pytest.mark.parametrize(
    ("gpa", "size", "offset"),
    [(MMIO + 1, 0x1000, 0), (MMIO, 0x1001, 0), (MMIO, 0, 0), (MMIO, 0x2000, 0), (MMIO, 0x1000, 0x1000)],
)
def test_bad_slots_are_refused(built: Build, gpa: int, size: int, offset: int) -> None:
    guest = built("hlt")
    with pytest.raises(InvalidError):
        guest.vm.set_memslot(1, gpa, size, RamBlock(0x1000), offset)


def test_overlapping_slots_are_refused(built: Build) -> None:
    guest = built("hlt")
    with pytest.raises(InvalidError):
        guest.vm.set_memslot(1, RAM_SIZE - 0x1000, 0x2000, RamBlock(0x2000))


def test_memory_outside_slots_is_refused(built: Build) -> None:
    guest = built("hlt")
    with pytest.raises(MemoryRangeError):
        guest.memory.read(RAM_SIZE - 4, 8)
