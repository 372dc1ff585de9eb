"""Stream-optimized extents: grains in order, tables behind them, and the last state after a crash."""

from __future__ import annotations

import random
import struct
import zlib

import pytest
from tests.unit.block.vmdk.conftest import Shelf

from sublet.block.vmdk.layout import GD_AT_END, HostedHeader, Mark, Marker
from sublet.errors import CorruptImage

GRAIN = 65536


@pytest.fixture
def stream(shelf: Shelf) -> Shelf:
    shelf.create(600 * GRAIN, subformat="streamOptimized")
    return shelf


def header(shelf: Shelf) -> HostedHeader:
    return HostedHeader.parse(bytes(shelf.content("disk.vmdk")[:512]), "x")


def marks(data: bytes, start: int) -> list[str]:
    """What a reader of the stream comes across."""
    found, place = [], start
    while True:
        marker = Marker.parse(data[place : place + 16])
        if marker.size:
            found.append(f"grain {marker.value // 128}")
            zlib.decompress(data[place + 12 : place + 12 + marker.size])
            place += -(-(12 + marker.size) // 512) * 512
        else:
            found.append(Mark(marker.mark).name)
            place += 512 * (1 + marker.value)
            if marker.mark == Mark.END:
                assert place == len(data)
                return found


def test_a_stream_written_at_once_is_what_other_readers_expect(stream: Shelf) -> None:
    with stream.open() as disk:
        for number in (0, 1, 513):
            disk.write(number * GRAIN, bytes([number % 251]) * GRAIN)
    assert header(stream).gd_offset == GD_AT_END
    data = bytes(stream.content("disk.vmdk"))
    assert marks(data, header(stream).overhead * 512) == [
        "grain 0",
        "grain 1",
        "grain 513",
        "GRAIN_TABLE",
        "GRAIN_TABLE",
        "GRAIN_DIRECTORY",
        "FOOTER",
        "END",
    ]


def test_an_empty_stream_has_a_directory_and_a_footer(stream: Shelf) -> None:
    data = bytes(stream.content("disk.vmdk"))
    assert marks(data, header(stream).overhead * 512) == ["GRAIN_DIRECTORY", "FOOTER", "END"]
    with stream.open(readonly=True) as disk:
        assert disk.read(0, GRAIN) == bytes(GRAIN)


def test_a_grain_written_in_part_keeps_the_rest(stream: Shelf) -> None:
    with stream.open() as disk:
        disk.write(0, b"a" * GRAIN)
        disk.write(100, b"b" * 100)
    with stream.open() as disk:
        disk.write(300, b"c" * 100)
    with stream.open(readonly=True) as disk:
        assert disk.read(0, 400) == b"a" * 100 + b"b" * 100 + b"a" * 100 + b"c" * 100
        assert disk.check().clean


def test_what_was_flushed_is_there_without_a_close(stream: Shelf) -> None:
    disk = stream.open()
    disk.write(0, b"a" * GRAIN)
    disk.flush()
    disk.write(GRAIN, b"b" * GRAIN)
    with stream.open(readonly=True) as after:
        assert after.read(0, 2 * GRAIN) == b"a" * GRAIN + bytes(GRAIN)


def test_a_cut_stream_is_refused(stream: Shelf) -> None:
    del stream.content("disk.vmdk")[-512:]
    with pytest.raises(CorruptImage, match="stream was cut"):
        stream.open()


def test_damaged_grains_are_found(stream: Shelf) -> None:
    with stream.open() as disk:
        disk.write(0, b"a" * GRAIN)
        disk.write(GRAIN, b"b" * GRAIN)
    start = header(stream).overhead * 512
    stream.content("disk.vmdk")[start + 12 : start + 20] = b"nonsense"
    struct.pack_into("<Q", stream.content("disk.vmdk"), start + 512, 99)
    with stream.open(readonly=True) as disk:
        assert disk.check().errors == 1
        with pytest.raises(CorruptImage, match="does not decompress"):
            disk.read(0, 1)
        with pytest.raises(CorruptImage, match="is not grain 1"):
            disk.read(GRAIN, 1)


def test_a_grain_that_expands_without_end_is_cut(stream: Shelf) -> None:
    with stream.open() as disk:
        disk.write(0, random.Random(1).randbytes(GRAIN))
    start = header(stream).overhead * 512
    bomb = zlib.compress(b"A" * (1 << 22))
    data = stream.content("disk.vmdk")
    data[start : start + 12 + len(bomb)] = Marker(0, len(bomb)).pack_grain() + bomb
    with stream.open(readonly=True) as disk:
        assert disk.read(0, GRAIN) == b"A" * GRAIN
