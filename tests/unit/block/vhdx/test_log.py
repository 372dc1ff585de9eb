"""The VHDX log: packing, finding the active sequence, and hostile entries."""

from __future__ import annotations

import random
import uuid

import pytest

from sublet.block.vhdx.crc32c import crc32c
from sublet.block.vhdx.layout import with_checksum
from sublet.block.vhdx.log import SECTOR, Entry, LogReader, Patch, entry_size, pack_entry
from sublet.errors import CorruptImage

GUID = uuid.UUID(int=5)
MIB = 1 << 20
RING = 64 * SECTOR
FILE = 16 * MIB


def sector(seed: int) -> bytes:
    return random.Random(seed).randbytes(SECTOR)


def entry(
    sequence: int, at: int, sectors: dict[int, bytes], *, tail: int | None = None, guid: uuid.UUID = GUID
) -> bytes:
    raw = pack_entry(sectors, sequence=sequence, at=at, log_guid=guid, file_size=FILE)
    if tail is None:
        return raw
    return with_checksum(raw[:12] + tail.to_bytes(4, "little") + raw[16:])


def ring(*placed: tuple[int, bytes]) -> bytes:
    raw = bytearray(RING)
    for at, data in placed:
        for index, byte in enumerate(data):
            raw[(at + index) % RING] = byte
    return bytes(raw)


def sequence_of(raw: bytes) -> list[int]:
    return [found.sequence for found in LogReader(raw, GUID).active_sequence()]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"123456789", 0xE306_9283),
        (bytes(32), 0x8A91_36AA),
        (b"\xff" * 32, 0x62A8_AB43),
        (bytes(range(32)), 0x46DD_794E),
    ],
)
def test_checksums_match_the_standards(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


def bit_by_bit(data: bytes) -> int:
    register = 0xFFFF_FFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F6_3B78 if register & 1 else 0)
    return register ^ 0xFFFF_FFFF


@pytest.mark.parametrize("zeroes", [0, 1, 7, 255, 4096])
def test_zeroes_at_the_end_count(zeroes: int) -> None:
    assert crc32c(b"head" + bytes(zeroes)) == bit_by_bit(b"head" + bytes(zeroes))


@pytest.mark.parametrize("count", [1, 2, 126, 127, 300])
def test_an_entry_gives_its_sectors_back(count: int) -> None:
    sectors = {MIB * 2 + index * SECTOR: sector(index) for index in range(count)}
    raw = pack_entry(sectors, sequence=1 << 40, at=0, log_guid=GUID, file_size=FILE)
    assert len(raw) == entry_size(count)
    reader = LogReader(raw, GUID)
    (found,) = reader.active_sequence()
    assert reader.patches(found) == [Patch(offset, SECTOR, data) for offset, data in sectors.items()]


def test_an_empty_log_has_no_sequence() -> None:
    assert sequence_of(ring()) == []


def test_the_newest_entry_counts() -> None:
    old, new = entry(6, 0, {MIB: sector(1)}), entry(7, 32 * SECTOR, {MIB: sector(2)})
    assert sequence_of(ring((0, old), (32 * SECTOR, new))) == [7]


def test_a_torn_newest_entry_leaves_the_one_before() -> None:
    old, new = entry(6, 0, {MIB: sector(1)}), entry(7, 32 * SECTOR, {MIB: sector(2)})
    assert sequence_of(ring((0, old), (32 * SECTOR, new[:SECTOR]))) == [6]


def test_a_sequence_runs_from_the_tail_of_its_head() -> None:
    first = entry(6, 0, {MIB: sector(1)})
    second = entry(7, len(first), {2 * MIB: sector(2)}, tail=0)
    assert sequence_of(ring((0, first), (len(first), second))) == [6, 7]


def test_a_sequence_with_a_gap_is_none() -> None:
    first = entry(5, 0, {MIB: sector(1)})
    second = entry(7, len(first), {2 * MIB: sector(2)}, tail=0)
    assert sequence_of(ring((0, first), (len(first), second))) == [5]


def test_an_entry_may_wrap_around_the_rings_end() -> None:
    at = RING - SECTOR
    raw = entry(9, at, {MIB: sector(1)})
    assert sequence_of(ring((at, raw))) == [9]


def test_entries_of_another_log_are_stale() -> None:
    assert sequence_of(ring((0, entry(9, 0, {MIB: sector(1)}, guid=uuid.UUID(int=6))))) == []


def test_overlapping_entries_cannot_cost_more_than_the_ring() -> None:
    # Each of them claims to be as long as the ring, and to be the head of a sequence of its own.
    head = bytearray(entry(1, 0, {MIB: sector(1)})[:64])
    head[8:12] = RING.to_bytes(4, "little")
    placed = []
    for index in range(64):
        head[12:16] = (index * SECTOR).to_bytes(4, "little")
        head[16:24] = (index + 1).to_bytes(8, "little")
        placed.append((index * SECTOR, bytes(head)))
    with pytest.raises(CorruptImage, match="overlap"):
        sequence_of(ring(*placed))


@pytest.mark.parametrize(
    ("offset", "size"), [(0, SECTOR), (128 * 1024, SECTOR), (MIB + 1, SECTOR), (FILE, SECTOR), (MIB, 1 << 60)]
)
def test_an_entry_that_writes_where_it_may_not_is_refused(offset: int, size: int) -> None:
    raw = bytearray(entry(1, 0, {MIB: sector(1)}))
    raw[64:68] = b"zero"
    raw[72:80] = size.to_bytes(8, "little")
    raw[80:88] = offset.to_bytes(8, "little")
    reader = LogReader(ring((0, with_checksum(bytes(raw)))), GUID)
    (found,) = reader.active_sequence()
    with pytest.raises(CorruptImage, match="VHDX log"):
        reader.patches(found)


def test_a_stale_data_sector_is_refused() -> None:
    raw = bytearray(entry(3, 0, {MIB: sector(1)}))
    raw[-4:] = (2).to_bytes(4, "little")
    reader = LogReader(ring((0, with_checksum(bytes(raw)))), GUID)
    (found,) = reader.active_sequence()
    assert isinstance(found, Entry)
    with pytest.raises(CorruptImage, match="stale"):
        reader.patches(found)
