"""The dirty log: exactly the pages that the guest or a device wrote."""

from __future__ import annotations

import pytest
from tests.conformance.engine.guests import MMIO, Build, Guest

from sublet.core import InvalidError, RamBlock

PAGES = 128


def dirty_pages(guest: Guest) -> list[int]:
    """Numbers of the pages written since the last call."""
    log = guest.vm.take_dirty_log(1)
    assert len(log) == PAGES // 8
    return [page for page in range(PAGES) if log[page // 8] >> page % 8 & 1]


def logged(guest: Guest, *, log_dirty: bool = True) -> Guest:
    """Give the guest a logged slot at ``MMIO``."""
    guest.vm.set_memslot(1, MMIO, PAGES << 12, RamBlock(PAGES << 12), log_dirty=log_dirty)
    return guest


STORE = f"mov ebx, {MMIO:#x};"


def test_exactly_the_written_pages(built: Build) -> None:
    guest = logged(built(STORE + "mov [rbx + 0x3000], al; mov [rbx + 0x46000], rax; out 0x80, al; hlt"))
    guest.out()
    assert dirty_pages(guest) == [3, 0x46]


def test_loads_do_not_mark(built: Build) -> None:
    guest = logged(built(STORE + "mov eax, [rbx]; cmp [rbx + 0x1000], eax; out 0x80, al; hlt"))
    guest.out()
    assert dirty_pages(guest) == []


def test_a_store_across_pages_marks_both(built: Build) -> None:
    guest = logged(built(STORE + "mov [rbx + 0x4ffe], eax; out 0x80, al; hlt"))
    guest.out()
    assert dirty_pages(guest) == [4, 5]


def test_taking_clears_and_the_next_store_marks_again(built: Build) -> None:
    guest = logged(built(STORE + "again: mov [rbx + 0x2000], al; out 0x80, al; jmp again"))
    for _ in range(3):
        guest.out()
        assert dirty_pages(guest) == [2]
        assert dirty_pages(guest) == []


def test_string_stores_mark_each_page(built: Build) -> None:
    guest = logged(built(STORE + "lea rdi, [rbx + 0x1ff0]; mov ecx, 0x2020; rep stosb; out 0x80, al; hlt"))
    guest.out()
    assert dirty_pages(guest) == [1, 2, 3, 4]


def test_device_stores_are_logged_too(built: Build) -> None:
    guest = logged(built("hlt"))
    guest.memory.write(MMIO + 0x7FFF, b"ab")
    assert dirty_pages(guest) == [7, 8]


def test_the_log_can_be_turned_on_later_without_losing_memory(built: Build) -> None:
    guest = built(STORE + "again: mov [rbx], al; out 0x80, al; jmp again")
    ram = RamBlock(PAGES << 12)
    guest.vm.set_memslot(1, MMIO, PAGES << 12, ram)
    guest.memory.write_u32(MMIO + 8, 0x5A)
    guest.out()
    guest.vm.set_memslot(1, MMIO, PAGES << 12, ram, log_dirty=True)
    guest.out()
    assert dirty_pages(guest) == [0]
    assert guest.memory.read_u32(MMIO + 8) == 0x5A


def test_a_slot_without_log_has_an_empty_one(built: Build) -> None:
    guest = logged(built(STORE + "mov [rbx], al; out 0x80, al; hlt"), log_dirty=False)
    guest.out()
    assert dirty_pages(guest) == []


def test_accessed_and_dirty_bits_of_page_tables_are_stores(built: Build) -> None:
    guest = logged(built(STORE + "mov eax, [0x200000]; mov [0x200000], eax; out 0x80, al; hlt"))
    guest.memory.write_u64(MMIO + 0x5000, 0x200000 | 3)
    guest.memory.write_u64(0x3008, MMIO + 0x5000 | 3)
    dirty_pages(guest)
    guest.out()
    assert dirty_pages(guest) == [5]
    assert guest.memory.read_u64(MMIO + 0x5000) & 0x60 == 0x60


def test_an_unknown_slot_is_refused(built: Build) -> None:
    with pytest.raises(InvalidError):
        built("hlt").vm.take_dirty_log(77)
