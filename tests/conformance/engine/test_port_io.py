"""Port I/O: every size and direction, string instructions, and reads that nobody answers."""

from __future__ import annotations

import pytest
from tests.conformance.engine.guests import CODE, DATA, Build

from sublet.core import EXIT_PIO_IN, EXIT_PIO_OUT

SIZES = [(1, "al"), (2, "ax"), (4, "eax")]


@pytest.mark.parametrize(("size", "register"), SIZES)
def test_out_gives_its_size_and_data(built: Build, size: int, register: str) -> None:
    guest = built(f"mov eax, 0x11223344; mov edx, 0x1234; out dx, {register}; hlt")
    exit = guest.expect(EXIT_PIO_OUT)
    assert (exit.port, exit.size, exit.data) == (0x1234, size, 0x11223344 & (1 << 8 * size) - 1)


@pytest.mark.parametrize(("size", "register"), SIZES)
def test_in_merges_into_rax_as_the_size_says(built: Build, size: int, register: str) -> None:
    guest = built(f"mov rax, 0x1122334455667788; in {register}, 0x42; out 0x80, al; hlt")
    assert guest.answer(0x42, 0xDDCCBBAA) == size
    guest.out()
    expected = {1: 0x11223344556677AA, 2: 0x112233445566BBAA, 4: 0xDDCCBBAA}[size]
    assert guest.regs()["rax"] == expected


def test_an_unanswered_in_reads_all_ones(built: Build) -> None:
    guest = built("xor eax, eax; in ax, 0x42; out 0x80, eax; hlt")
    guest.expect(EXIT_PIO_IN)
    assert guest.out() == 0xFFFF


def test_an_out_has_executed_when_the_caller_looks(built: Build) -> None:
    guest = built("out 0x80, al; hlt")
    guest.out()
    assert guest.regs()["rip"] == CODE + 2


def test_a_store_before_an_out_is_in_memory(built: Build) -> None:
    guest = built(f"mov dword ptr [{DATA}], 0x55; out 0x80, al; hlt")
    guest.out()
    assert guest.memory.read_u32(DATA) == 0x55


@pytest.mark.parametrize(("size", "suffix"), [(1, "b"), (2, "w"), (4, "d")])
def test_rep_outs_leaves_element_by_element(built: Build, size: int, suffix: str) -> None:
    guest = built(f"lea rsi, [{DATA}]; mov ecx, 3; mov edx, 0x80; rep outs{suffix}; out 0x81, al; hlt")
    guest.memory.write(DATA, bytes(range(1, 13)))
    expected = [
        int.from_bytes(bytes(range(1 + size * at, 1 + size * at + size)), "little") for at in range(3)
    ]
    assert guest.outs(3) == expected
    guest.out(0x81)
    assert (guest.regs()["rcx"], guest.regs()["rsi"]) == (0, DATA + 3 * size)


@pytest.mark.parametrize(("size", "suffix"), [(1, "b"), (2, "w"), (4, "d")])
def test_rep_ins_takes_an_answer_an_element(built: Build, size: int, suffix: str) -> None:
    guest = built(f"lea rdi, [{DATA}]; mov ecx, 3; mov edx, 0x42; rep ins{suffix}; out 0x81, al; hlt")
    for value in (0x11, 0x22, 0x33):
        assert guest.answer(0x42, value) == size
    guest.out(0x81)
    expected = b"".join(value.to_bytes(size, "little") for value in (0x11, 0x22, 0x33))
    assert guest.memory.read(DATA, 3 * size) == expected


def test_rep_outs_downwards(built: Build) -> None:
    guest = built(f"std; lea rsi, [{DATA + 2}]; mov ecx, 3; mov edx, 0x80; rep outsb; cld; out 0x81, al; hlt")
    guest.memory.write(DATA, b"\x01\x02\x03")
    assert guest.outs(3) == [3, 2, 1]
    guest.out(0x81)


def test_rep_outs_of_nothing_does_nothing(built: Build) -> None:
    guest = built("xor ecx, ecx; mov edx, 0x80; rep outsb; out 0x81, al; hlt")
    guest.out(0x81)


def test_a_long_rep_outs_loses_nothing(built: Build) -> None:
    guest = built(f"lea rsi, [{DATA}]; mov ecx, 5000; mov edx, 0x80; rep outsb; out 0x81, al; hlt")
    data = bytes(at % 251 for at in range(5000))
    guest.memory.write(DATA, data)
    assert bytes(guest.vcpu.run().data for _ in range(5000)) == data
    guest.out(0x81)
