"""Footer, dynamic header and geometry of a VHD."""

from __future__ import annotations

import uuid

import pytest

from sublet.block.vhd.layout import (
    DiskType,
    DynamicHeader,
    Footer,
    Locator,
    bitmap_size,
    checksum,
    geometry,
    timestamp,
)
from sublet.errors import CorruptImage, UnsupportedImage

FOOTER = Footer(8 << 20, DiskType.DYNAMIC, uuid.UUID(int=7), data_offset=512, geometry=(1, 2, 3))
HEADER = DynamicHeader(
    1536, 4, 1 << 20, uuid.UUID(int=9), 5, "base.vhd", (Locator(b"W2ru", 512, 20, 4096),) * 8
)


def with_checksum(raw: bytes, offset: int) -> bytes:
    zeroed = raw[:offset] + bytes(4) + raw[offset + 4 :]
    return raw[:offset] + checksum(zeroed).to_bytes(4, "big") + raw[offset + 4 :]


def test_footer_survives_packing() -> None:
    assert Footer.parse(FOOTER.pack()) == FOOTER


def test_footer_of_511_bytes_is_read() -> None:
    assert Footer.parse(FOOTER.pack()[:511]) == FOOTER


def test_header_survives_packing() -> None:
    assert DynamicHeader.parse(HEADER.pack()) == HEADER


@pytest.mark.parametrize("position", [0, 8, 40, 47, 60, 64, 70, 200])
def test_any_changed_byte_of_a_footer_is_noticed(position: int) -> None:
    raw = bytearray(FOOTER.pack())
    raw[position] ^= 0x10
    with pytest.raises(CorruptImage, match=r"cookie|checksum"):
        Footer.parse(bytes(raw))


@pytest.mark.parametrize(
    ("offset", "value", "error", "field"),
    [
        (12, (2 << 16).to_bytes(4, "big"), UnsupportedImage, "version"),
        (60, (6).to_bytes(4, "big"), UnsupportedImage, "disk type"),
        (48, (513).to_bytes(8, "big"), CorruptImage, "current size"),
        (48, (1 << 63).to_bytes(8, "big"), CorruptImage, "current size"),
    ],
)
def test_footer_fields_out_of_range_are_named(
    offset: int, value: bytes, error: type[Exception], field: str
) -> None:
    raw = FOOTER.pack()
    raw = raw[:offset] + value + raw[offset + len(value) :]
    with pytest.raises(error, match=field):
        Footer.parse(with_checksum(raw, 64))


@pytest.mark.parametrize("block_size", [0, 512, 3 << 20, 1 << 31])
def test_block_size_out_of_range_is_named(block_size: int) -> None:
    raw = HEADER.pack()
    raw = raw[:32] + block_size.to_bytes(4, "big") + raw[36:]
    with pytest.raises(CorruptImage, match="block size"):
        DynamicHeader.parse(with_checksum(raw, 36))


@pytest.mark.parametrize("size", [0, 512, 1 << 20, 100 << 20, 504 << 20, 8 << 30, 127 << 30, 2040 << 30])
def test_geometry_never_exceeds_the_disk_or_its_fields(size: int) -> None:
    cylinders, heads, sectors = geometry(size)
    assert cylinders <= 0xFFFF
    assert heads <= 16
    assert sectors <= 255
    assert cylinders * heads * sectors * 512 <= size


def test_bitmaps_fill_sectors() -> None:
    assert [bitmap_size(size) for size in (4096, 2 << 20, 4 << 20, 256 << 20)] == [512, 512, 1024, 65536]


def test_timestamps_are_clamped() -> None:
    assert [timestamp(0), timestamp(946684800), timestamp(1e12)] == [0, 0, 0xFFFF_FFFF]
