"""The VDI header: what is read is written again, and every contradiction is named."""

from __future__ import annotations

import struct
import uuid

import pytest

from sublet.block.vdi.layout import DEFAULT_BLOCK_SIZE, HEADER_AREA, Header, Kind, data_offset_for, probe
from sublet.errors import CorruptImage, UnsupportedImage

HEADER = Header(
    kind=Kind.DYNAMIC,
    disk_size=5 << 20,
    blocks=5,
    map_offset=512,
    data_offset=1 << 20,
    allocated=2,
    comment=b"a comment",
    image=uuid.UUID(int=1),
    last_change=uuid.UUID(int=2),
    geometry=(10, 16, 63),
)


def changed(offset: int, layout: str, value: int) -> bytes:
    """The header with one field overwritten."""
    data = bytearray(HEADER.pack())
    struct.pack_into(layout, data, offset, value)
    return bytes(data)


def test_a_header_survives_the_way_to_the_file_and_back() -> None:
    data = HEADER.pack()
    assert len(data) == HEADER_AREA
    assert Header.parse(data) == HEADER.replace(tail=bytes(40))
    assert Header.parse(data).pack() == data


def test_fields_lie_where_virtualbox_has_them() -> None:
    data = HEADER.pack()
    assert probe(data)
    assert struct.unpack_from("<II", data, 64) == (0xBEDA107F, 0x10001)
    assert struct.unpack_from("<QIIII", data, 368) == (5 << 20, DEFAULT_BLOCK_SIZE, 0, 5, 2)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "error", "word"),
    [
        (64, "<I", 0, CorruptImage, "signature"),
        (68, "<I", 0x20000, UnsupportedImage, "version"),
        (72, "<I", 100, CorruptImage, "size is 100"),
        (76, "<I", 3, UnsupportedImage, "undo"),
        (76, "<I", 9, CorruptImage, "image type is 9"),
        (340, "<I", 100, CorruptImage, "block map is at 100"),
        (344, "<I", 512, CorruptImage, "data is at 512"),
        (360, "<I", 4096, UnsupportedImage, "sector size"),
        (368, "<Q", 1 << 62, CorruptImage, "too few"),
        (376, "<I", 1000, CorruptImage, "block size is 1000"),
        (376, "<I", 1 << 31, CorruptImage, "block size"),
        (380, "<I", 7, UnsupportedImage, "extra"),
        (384, "<I", 0xFFFFFFFF, UnsupportedImage, "blocks"),
    ],
)
def test_a_contradiction_is_refused_by_name(
    offset: int, layout: str, value: int, error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        Header.parse(changed(offset, layout, value))


def test_a_short_file_is_no_image() -> None:
    with pytest.raises(CorruptImage, match="fewer than a header"):
        Header.parse(b"x" * 100)


def test_data_begins_after_the_map() -> None:
    assert data_offset_for(0) == 1 << 20
    assert data_offset_for(1 << 21) == 9 << 20
