"""Memory-mapped I/O: sizes, order, crossings, read-modify-write, and wide stores in pieces."""

from __future__ import annotations

import pytest
from tests.conformance.engine.guests import CODE, DATA, MMIO, Build, Guest

from sublet.core import EXIT_MMIO_READ, EXIT_MMIO_WRITE

SIZES = [(1, "al", "byte"), (2, "ax", "word"), (4, "eax", "dword"), (8, "rax", "qword")]
VALUE = 0x1122334455667788


def written(guest: Guest, size: int, address: int = MMIO) -> int:
    """Collect ``size`` bytes of stores in order of address, in pieces of any legal size."""
    value = done = 0
    while done < size:
        exit = guest.expect(EXIT_MMIO_WRITE)
        assert exit.address == address + done
        assert exit.size in (1, 2, 4, 8)
        value |= exit.data << 8 * done
        done += exit.size
    assert done == size
    return value


def supply(guest: Guest, size: int, value: int, address: int = MMIO) -> None:
    """Answer ``size`` bytes of loads in order of address."""
    done = 0
    while done < size:
        exit = guest.expect(EXIT_MMIO_READ)
        assert exit.address == address + done
        guest.vcpu.complete_read(value >> 8 * done & (1 << 8 * exit.size) - 1)
        done += exit.size
    assert done == size


@pytest.mark.parametrize(("size", "register", "_name"), SIZES)
def test_a_store_is_one_exit_of_its_size(built: Build, size: int, register: str, _name: str) -> None:
    guest = built(f"mov rax, {VALUE:#x}; mov rbx, {MMIO:#x}; mov [rbx], {register}; hlt")
    exit = guest.expect(EXIT_MMIO_WRITE)
    assert (exit.address, exit.size, exit.data) == (MMIO, size, VALUE & (1 << 8 * size) - 1)


@pytest.mark.parametrize(("size", "register", "_name"), SIZES)
def test_a_load_merges_as_its_size_says(built: Build, size: int, register: str, _name: str) -> None:
    guest = built(f"mov rax, -1; mov rbx, {MMIO:#x}; mov {register}, [rbx]; out 0x80, al; hlt")
    exit = guest.expect(EXIT_MMIO_READ)
    assert (exit.address, exit.size) == (MMIO, size)
    guest.vcpu.complete_read(VALUE)
    guest.out()
    kept = 0xFFFF_FFFF_FFFF_FFFF if size < 4 else 0
    mask = (1 << 8 * size) - 1
    assert guest.regs()["rax"] == kept & ~mask | VALUE & mask


def test_an_unanswered_load_reads_all_ones(built: Build) -> None:
    guest = built(f"mov rbx, {MMIO:#x}; mov eax, [rbx]; out 0x80, eax; hlt")
    guest.expect(EXIT_MMIO_READ)
    assert guest.out() == 0xFFFF_FFFF


@pytest.mark.parametrize("extension", ["movzx", "movsx"])
def test_a_load_with_extension(built: Build, extension: str) -> None:
    guest = built(f"mov rbx, {MMIO:#x}; {extension} eax, byte ptr [rbx]; out 0x80, eax; hlt")
    supply(guest, 1, 0x80)
    assert guest.out() == (0x80 if extension == "movzx" else 0xFFFF_FF80)


def test_an_immediate_store(built: Build) -> None:
    guest = built(f"mov rbx, {MMIO:#x}; mov dword ptr [rbx], 0x12345678; hlt")
    assert written(guest, 4) == 0x12345678


@pytest.mark.parametrize(
    ("operation", "expected"),
    [("add", 0x0F + 0x31), ("or", 0x0F | 0x31), ("and", 0x0F & 0x31), ("xor", 0x0F ^ 0x31), ("xchg", 0x31)],
)
def test_read_modify_write_reads_once_and_writes_once(built: Build, operation: str, expected: int) -> None:
    guest = built(f"mov ecx, 0x31; mov rbx, {MMIO:#x}; {operation} [rbx], ecx; out 0x80, al; hlt")
    supply(guest, 4, 0x0F)
    assert written(guest, 4) == expected
    guest.out()


def test_a_test_instruction_only_reads(built: Build) -> None:
    guest = built(f"mov rbx, {MMIO:#x}; test dword ptr [rbx], 4; setnz al; out 0x80, al; hlt")
    supply(guest, 4, 4)
    assert guest.out() == 1


def test_an_unaligned_store_arrives_whole(built: Build) -> None:
    guest = built(f"mov eax, 0x11223344; mov rbx, {MMIO + 1:#x}; mov [rbx], eax; out 0x80, al; hlt")
    assert written(guest, 4, MMIO + 1) == 0x11223344
    guest.out()


def test_a_store_across_pages_arrives_whole(built: Build) -> None:
    at = MMIO + 0xFFD
    guest = built(f"mov rax, {VALUE:#x}; mov rbx, {at:#x}; mov [rbx], rax; out 0x80, al; hlt")
    assert written(guest, 8, at) == VALUE
    guest.out()


def test_a_load_across_pages_arrives_whole(built: Build) -> None:
    at = MMIO + 0xFFD
    guest = built(f"mov rbx, {at:#x}; mov rax, [rbx]; out 0x80, al; hlt")
    supply(guest, 8, VALUE, at)
    guest.out()
    assert guest.regs()["rax"] == VALUE


def test_a_16_byte_store_comes_in_pieces(built: Build) -> None:
    guest = built(f"movaps xmm0, [{DATA}]; mov rbx, {MMIO:#x}; movaps [rbx], xmm0; out 0x80, al; hlt")
    guest.memory.write(DATA, bytes(range(16)))
    assert written(guest, 16).to_bytes(16, "little") == bytes(range(16))
    guest.out()


def test_a_16_byte_load_comes_in_pieces(built: Build) -> None:
    guest = built(f"mov rbx, {MMIO:#x}; movdqu xmm0, [rbx]; movdqu [{DATA}], xmm0; out 0x80, al; hlt")
    supply(guest, 16, int.from_bytes(bytes(range(16)), "little"))
    guest.out()
    assert guest.memory.read(DATA, 16) == bytes(range(16))


def test_rep_stos_and_movs_to_a_device(built: Build) -> None:
    source = f"""
        mov rdi, {MMIO:#x}; mov eax, 0x21; mov ecx, 3; rep stosd
        lea rsi, [{DATA}]; mov ecx, 2; rep movsd
        out 0x80, al; hlt"""
    guest = built(source)
    guest.memory.write(DATA, b"\x01\0\0\0\x02\0\0\0")
    expected = [0x21, 0x21, 0x21, 1, 2]
    assert [written(guest, 4, MMIO + 4 * at) for at in range(5)] == expected
    guest.out()


def test_push_from_a_device(built: Build) -> None:
    guest = built(f"mov rbx, {MMIO:#x}; push qword ptr [rbx]; pop rax; out 0x80, al; hlt")
    supply(guest, 8, VALUE)
    guest.out()
    assert guest.regs()["rax"] == VALUE


def test_the_instruction_is_over_when_its_store_left(built: Build) -> None:
    guest = built(f"mov ebx, {MMIO:#x}; mov [rbx], al; nop; hlt")
    guest.expect(EXIT_MMIO_WRITE)
    assert guest.regs()["rip"] == CODE + 7


def test_stores_to_ram_and_device_keep_their_order(built: Build) -> None:
    guest = built(
        f"mov ebx, {MMIO:#x}; mov dword ptr [{DATA}], 7; mov [rbx], al; mov dword ptr [{DATA}], 8; hlt"
    )
    guest.expect(EXIT_MMIO_WRITE)
    assert guest.memory.read_u32(DATA) == 7
