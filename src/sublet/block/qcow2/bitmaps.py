"""QCOW2 persistent dirty bitmaps: which parts of the disk were written since some moment.

Reference: "QCOW2 image format" (QEMU 7.2), § "Bitmaps".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sublet.block.format import Json
from sublet.block.hostfile import HostFile, read_structure
from sublet.block.qcow2 import layout as q
from sublet.errors import CorruptImage

if TYPE_CHECKING:
    from sublet.block.qcow2.references import References

_EXTENSION: Final = struct.Struct(">IIQQ")
_ENTRY: Final = struct.Struct(">QIIBBHI")
BITMAPS_MAXIMUM: Final = 65535
DIRECTORY_MAXIMUM: Final = 64 << 20
TABLE_MAXIMUM: Final = 1 << 20
"""Entries of one bitmap's table that we read."""
IN_USE, AUTO = 1, 2


@dataclass
class Bitmap:
    """An entry of the bitmap directory."""

    name: str
    granularity_bits: int
    flags: int
    table_offset: int
    table_entries: int
    entry_offset: int
    """Where the directory entry is in the file."""

    def describe(self) -> Json:
        """As ``info`` shows it."""
        names = {IN_USE: "in-use", AUTO: "auto"}
        flags: list[Json] = [text for bit, text in names.items() if self.flags & bit]
        return {"name": self.name, "granularity": 1 << self.granularity_bits, "flags": flags}


def read_directory(file: HostFile, header: q.Header) -> list[Bitmap]:
    """The bitmaps that the header names; none where another program invalidated them.

    Raises:
        CorruptImage: The directory is damaged.
    """
    extension = header.extension(q.EXTENSION_BITMAPS)
    if extension is None or not header.autoclear & q.AUTOCLEAR_BITMAPS:
        return []
    if len(extension) != _EXTENSION.size:
        raise CorruptImage(f"{file.path}: the bitmaps extension has {len(extension)} bytes")
    count, _, size, offset = _EXTENSION.unpack(extension)
    if count > BITMAPS_MAXIMUM or size > DIRECTORY_MAXIMUM:
        raise CorruptImage(f"{file.path}: the bitmap directory has {count} entries in {size} bytes")
    data = read_structure(file, offset, size, "bitmap directory")
    bitmaps: list[Bitmap] = []
    place = 0
    for number in range(count):
        if place + _ENTRY.size > size:
            raise CorruptImage(f"{file.path}: bitmap directory entry {number} is cut off")
        bitmap, step = _read_entry(file, data, place, offset, number)
        bitmaps.append(bitmap)
        place += step
    return bitmaps


def _read_entry(file: HostFile, data: bytes, place: int, offset: int, number: int) -> tuple[Bitmap, int]:
    fields = _ENTRY.unpack_from(data, place)
    table_offset, table_entries, flags, kind, granularity, name_size, extra_size = fields
    step = _ENTRY.size + name_size + extra_size
    step += -step % 8
    if kind != 1 or not 9 <= granularity <= 31 or place + step > len(data):
        raise CorruptImage(f"{file.path}: bitmap directory entry {number} is damaged")
    if table_entries > TABLE_MAXIMUM or table_offset % 512:
        raise CorruptImage(
            f"{file.path}: bitmap {number} has a table of {table_entries} at {table_offset:#x}"
        )
    start = place + _ENTRY.size + extra_size
    name = data[start : start + name_size].decode("utf-8", "replace")
    return Bitmap(name, granularity, flags, table_offset, table_entries, offset + place), step


def add_bitmaps(file: HostFile, header: q.Header, references: References) -> None:
    """Count the clusters of the directory, the tables and the bitmaps."""
    bitmaps = read_directory(file, header)
    extension = header.extension(q.EXTENSION_BITMAPS)
    if not bitmaps or extension is None:
        return
    _, _, size, offset = _EXTENSION.unpack(extension)
    references.add(offset, size, "bitmap directory")
    for bitmap in bitmaps:
        what = f"table of bitmap {bitmap.name!r}"
        if not bitmap.table_entries or not references.add(
            bitmap.table_offset, bitmap.table_entries * 8, what
        ):
            continue
        for entry in read_table(file, bitmap):
            if entry & q.OFFSET_MASK:
                references.add(entry & q.OFFSET_MASK, header.cluster_size, f"bitmap {bitmap.name!r}")


def read_table(file: HostFile, bitmap: Bitmap) -> list[int]:
    """Offsets of the clusters that hold the bits."""
    what = f"table of bitmap {bitmap.name!r}"
    return list(q.table_from_bytes(read_structure(file, bitmap.table_offset, bitmap.table_entries * 8, what)))


class Bitmaps:
    """The bitmaps of an open image."""

    def __init__(self, file: HostFile, header: q.Header) -> None:
        self.all = read_directory(file, header)
        self.active = False

    def mark(self, offset: int, size: int) -> None:
        """The range is about to be written."""
