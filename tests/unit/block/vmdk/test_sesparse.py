"""seSparse extents, put together by hand: VMware documents nothing and no free tool writes them."""

from __future__ import annotations

import struct

import pytest
from tests.unit.block.vmdk.conftest import Shelf

from sublet.block.contract import BlockStatus
from sublet.errors import CorruptImage, UnsupportedImage

GRAIN = 4096
SECTORS = 4096 * 8 * 2
"""Two tables' worth of disk."""
VOLATILE, DIRECTORY, TABLES, GRAINS = 1, 2, 8, 8 + 64


def extent(entries: dict[int, int], *, replay: int = 0, directory: int = 0x1000_0000_0000_0000) -> bytearray:
    """An extent with one table of ``entries``, and grains of As, Bs and Cs."""
    header = [0xCAFEBABE, 0x2_0000_0001, SECTORS, 8, 64, 0, 0, 0, 0, 0, VOLATILE, 1, 0, 0, 0, 0]
    header += [DIRECTORY, 1, TABLES, 64, 0, 0, 0, 0, GRAINS, 24]
    data = bytearray(GRAINS * 512) + b"A" * GRAIN + b"B" * GRAIN + b"C" * GRAIN
    struct.pack_into("<26Q", data, 0, *header)
    struct.pack_into("<4Q", data, VOLATILE * 512, 0xCAFECAFE, 0, 0, replay)
    struct.pack_into("<Q", data, DIRECTORY * 512, directory)
    for number, value in entries.items():
        struct.pack_into("<Q", data, TABLES * 512 + 8 * number, value)
    return data


def put(shelf: Shelf, data: bytearray) -> None:
    text = f"""# Disk DescriptorFile
version=1
CID=00000001
parentCID=ffffffff
createType="seSparse"
RW {SECTORS} SESPARSE "disk-sesparse.vmdk"
"""
    shelf.files.content[shelf.path("disk.vmdk")] = bytearray(text.encode())
    shelf.files.content[shelf.path("disk-sesparse.vmdk")] = data


def grain(index: int) -> int:
    """The entry of the grain with that number: its low 12 bits are bits 48 to 59."""
    return 3 << 60 | (index & 0xFFF) << 48 | index >> 12


def test_grains_zeroes_and_holes_are_read(shelf: Shelf) -> None:
    put(shelf, extent({0: grain(1), 1: grain(2), 3: 1 << 60, 4: 2 << 60, 5: grain(0)}))
    with shelf.open(readonly=True) as disk:
        expected = b"B" * GRAIN + b"C" * GRAIN + bytes(3 * GRAIN) + b"A" * GRAIN
        assert disk.read(0, 6 * GRAIN) == expected
        assert disk.read(512, 6 * GRAIN) == (expected + bytes(GRAIN))[512 : 512 + 6 * GRAIN]
        assert disk.read(4096 * GRAIN, GRAIN) == bytes(GRAIN)
        extents = list(disk.extents())
        assert disk.check().clean
    assert [(part.size // GRAIN, part.status) for part in extents[:2]] == [
        (2, BlockStatus.DATA),
        (1, BlockStatus.ZERO),
    ]


def test_writing_is_refused(shelf: Shelf) -> None:
    put(shelf, extent({}))
    with pytest.raises(UnsupportedImage, match="seSparse"):
        shelf.open()


def test_a_journal_to_play_back_is_refused(shelf: Shelf) -> None:
    put(shelf, extent({}, replay=1))
    with pytest.raises(UnsupportedImage, match="journal"):
        shelf.open(readonly=True)


@pytest.mark.parametrize(
    ("entries", "directory", "word"),
    [
        ({0: 5}, 0x1000_0000_0000_0000, "grain 0 is 0x5"),
        ({0: grain(0) | 0xFFFF_FFFF_FFFF}, 0x1000_0000_0000_0000, "past any end"),
        ({}, 0x2000_0000_0000_0000, "entry 0 is"),
        ({}, 0x1000_0000_0000_0009, "grain table"),
    ],
)
def test_damage_is_found(shelf: Shelf, entries: dict[int, int], directory: int, word: str) -> None:
    put(shelf, extent(entries, directory=directory))
    with shelf.open(readonly=True) as disk:
        with pytest.raises(CorruptImage, match=word):
            disk.read(0, 512)
        assert disk.check().errors >= 1
