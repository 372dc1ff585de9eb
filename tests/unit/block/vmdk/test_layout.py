"""Headers and markers of VMDK extents."""

from __future__ import annotations

import struct

import pytest

from sublet.block.vmdk.layout import (
    CowdHeader,
    HostedHeader,
    Mark,
    Marker,
    SeSparseHeader,
    hosted_plan,
    stream_plan,
)
from sublet.errors import CorruptImage, UnsupportedImage


def test_a_new_extent_is_laid_out_as_vmware_does() -> None:
    header = hosted_plan(3 << 21, descriptor=True)
    assert (header.descriptor_offset, header.descriptor_size) == (1, 20)
    assert (header.redundant_gd_offset, header.gd_offset, header.overhead) == (21, 406, 896)


@pytest.mark.parametrize("header", [hosted_plan(12345, descriptor=False, zeroed_grains=True), stream_plan(1)])
def test_a_hosted_header_survives_the_way_to_the_file_and_back(header: HostedHeader) -> None:
    assert HostedHeader.parse(header.pack(), "x") == header


@pytest.mark.parametrize(
    ("offset", "layout", "value", "error", "word"),
    [
        (0, "<I", 0, CorruptImage, "no VMDK"),
        (4, "<I", 4, UnsupportedImage, "version 4"),
        (12, "<Q", 1 << 60, CorruptImage, "too many grain tables"),
        (20, "<Q", 0, CorruptImage, "grain of 0"),
        (20, "<Q", 100, CorruptImage, "grain of 100"),
        (20, "<Q", 1 << 40, CorruptImage, "grain of"),
        (44, "<I", 0, CorruptImage, "0 entries"),
        (44, "<I", 513, CorruptImage, "513 entries"),
        (73, "<I", 0x0A0A0A0A, CorruptImage, "copied as text"),
        (77, "<H", 1, UnsupportedImage, "compression 1"),
    ],
)
def test_a_contradiction_is_refused_by_name(
    offset: int, layout: str, value: int, error: type[Exception], word: str
) -> None:
    data = bytearray(hosted_plan(2048, descriptor=True).pack())
    struct.pack_into(layout, data, offset, value)
    with pytest.raises(error, match=word):
        HostedHeader.parse(bytes(data), "x")


def test_a_cowd_header_survives_the_way_to_the_file_and_back() -> None:
    header = CowdHeader(100_000, 1, 4, 25, 5)
    data = header.pack()
    assert CowdHeader.parse(data, "x") == header
    assert struct.unpack_from("<I", data, CowdHeader.FREE_SECTOR_OFFSET) == (5,)


@pytest.mark.parametrize(("gd_entries", "word"), [(24, "too few"), (25, "inside the header")])
def test_a_cowd_header_that_contradicts_itself_is_refused(gd_entries: int, word: str) -> None:
    with pytest.raises(CorruptImage, match=word):
        CowdHeader.parse(CowdHeader(100_000, 1, 0, gd_entries, 5).pack(), "x")


def test_markers() -> None:
    assert Marker.parse(Marker(4, 0, Mark.GRAIN_TABLE).pack()) == Marker(4, 0, Mark.GRAIN_TABLE)
    assert Marker(128, 77).pack_grain() == struct.pack("<QI", 128, 77)


def test_an_unknown_sesparse_header_is_refused() -> None:
    fields = [0xCAFEBABE, 0x2_0000_0001, 64, 8, 64, *[0] * 21]
    with pytest.raises(CorruptImage, match="directory"):
        SeSparseHeader.parse(struct.pack("<26Q", *fields), "x")
    fields[5] = 1
    with pytest.raises(UnsupportedImage, match="flags 0x1"):
        SeSparseHeader.parse(struct.pack("<26Q", *fields), "x")
