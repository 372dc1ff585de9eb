"""QCOW2 persistent dirty bitmaps: which parts of the disk were written since some moment.

Reference: "QCOW2 image format" (QEMU 7.2), § "Bitmaps".
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sublet.block.description import Json
from sublet.block.hostfile import HostFile, read_structure
from sublet.block.qcow2 import layout as q
from sublet.errors import CorruptImage, UsageError

if TYPE_CHECKING:
    from sublet.block.qcow2.references import References

_EXTENSION: Final = struct.Struct(">IIQQ")
_ENTRY: Final = struct.Struct(">QIIBBHI")
BITMAPS_MAXIMUM: Final = 65535
DIRECTORY_MAXIMUM: Final = 64 << 20
TABLE_MAXIMUM: Final = 1 << 20
"""Entries of one bitmap's table that we read."""
BITS_MAXIMUM: Final = 64 << 20
"""Bytes of the bits of one bitmap that are kept in memory."""
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
    """The bitmaps of an open image, and the bits of those that are kept up to date.

    On disk a bitmap is marked as in use from the moment the image is opened for writing until its bits are
    stored at closing; after a crash it says so, and its bits are not trusted.
    """

    def __init__(self, file: HostFile, header: q.Header) -> None:
        self._file = file
        self._header = header
        self._lock = threading.Lock()
        self.bits: dict[str, bytearray] = {}
        """By name: bit n, counted from the lowest of byte 0, is for the n-th ``granularity`` bytes."""
        self.all = read_directory(file, header)

    @property
    def active(self) -> bool:
        """Whether writes have to be marked."""
        return bool(self.bits)

    def find(self, name: str) -> Bitmap:
        """The bitmap of that name.

        Raises:
            UsageError: There is none.
        """
        for bitmap in self.all:
            if bitmap.name == name:
                return bitmap
        names = ", ".join(bitmap.name for bitmap in self.all) or "none"
        raise UsageError(f"{self._file.path} has no bitmap {name!r}; it has: {names}")

    def recorded(self, name: str) -> bytearray:
        """The bits, as they are kept, of a bitmap that is kept up to date.

        Raises:
            UsageError: There is none of that name, or it is not kept up to date.
        """
        bits = self.bits.get(self.find(name).name)
        if bits is None:
            raise UsageError(f"the bitmap {name!r} was not closed cleanly or is disabled: make another")
        return bits

    def begin_writing(self) -> None:
        """Read the bits that are to be kept up to date, and mark them as in use."""
        for bitmap in self.all:
            if bitmap.flags & AUTO and not bitmap.flags & IN_USE:
                size = bits_bytes(self._header.size, bitmap)
                if size <= BITS_MAXIMUM:
                    self.bits[bitmap.name] = self.load(bitmap)
                bitmap.flags |= IN_USE
                self.write_flags(bitmap)
        if self.bits:
            self._file.flush()

    def write_flags(self, bitmap: Bitmap) -> None:
        """Write a bitmap's flags where they are: 4 bytes in one sector."""
        self._file.write(bitmap.entry_offset + 12, bitmap.flags.to_bytes(4, "big"))

    def load(self, bitmap: Bitmap) -> bytearray:
        """The bits of a bitmap as they are on disk.

        Raises:
            CorruptImage: The table is too short, or leads out of the file.
        """
        size, cluster = bits_bytes(self._header.size, bitmap), self._header.cluster_size
        table = read_table(self._file, bitmap)
        if len(table) * cluster < size:
            raise CorruptImage(f"{self._file.path}: the table of bitmap {bitmap.name!r} is too short")
        bits = bytearray()
        for entry in table[: -(-size // cluster)]:
            offset = entry & q.OFFSET_MASK
            if offset:
                bits += read_structure(self._file, offset, cluster, f"bitmap {bitmap.name!r}")
            else:
                bits += (b"\xff" if entry & 1 else b"\0") * cluster
        del bits[size:]
        return bits

    def mark(self, offset: int, size: int) -> None:
        """The range is about to be written."""
        if not self.bits or not size:
            return
        with self._lock:
            for bitmap in self.all:
                bits = self.bits.get(bitmap.name)
                if bits is not None:
                    first = offset >> bitmap.granularity_bits
                    set_bits(bits, first, (offset + size - 1 >> bitmap.granularity_bits) + 1)

    def mark_one(self, name: str, offset: int, size: int) -> None:
        """As ``mark``, in one bitmap."""
        bitmap = self.find(name)
        with self._lock:
            first = offset >> bitmap.granularity_bits
            set_bits(self.bits[name], first, (offset + size - 1 >> bitmap.granularity_bits) + 1)

    def resized(self, size: int) -> None:
        """The disk has another size: new parts are dirty."""
        with self._lock:
            for bitmap in self.all:
                bits = self.bits.get(bitmap.name)
                if bits is not None:
                    grown = bits_bytes(size, bitmap) - len(bits)
                    bits.extend(b"\xff" * grown)
                    del bits[bits_bytes(size, bitmap) :]

    def dirty(self, name: str, size: int) -> Iterator[tuple[int, int]]:
        """(offset, bytes) of each dirty run of a disk of ``size`` bytes.

        Raises:
            UsageError: There is no such bitmap, or a crash made it worthless.
        """
        bitmap = self.find(name)
        if bitmap.flags & IN_USE and name not in self.bits:
            raise UsageError(f"the bitmap {name!r} was not closed cleanly: make a full backup")
        bits = self.bits.get(bitmap.name)
        bits = self.load(bitmap) if bits is None else bits
        step = 1 << bitmap.granularity_bits
        for first, last in bit_runs(bits):
            if first * step < size:
                yield first * step, min(size, last * step) - first * step


def bits_bytes(size: int, bitmap: Bitmap) -> int:
    """Bytes of the bits for a disk of ``size`` bytes."""
    return -(-size // (8 << bitmap.granularity_bits))


def set_bits(bits: bytearray, first: int, last: int) -> None:
    """Set the half-open range of bits."""
    last = min(last, len(bits) * 8)
    while first < last and first % 8:
        bits[first >> 3] |= 1 << (first & 7)
        first += 1
    whole = max(0, last - first) >> 3
    bits[first >> 3 : (first >> 3) + whole] = b"\xff" * whole
    for position in range(first + whole * 8, last):
        bits[position >> 3] |= 1 << (position & 7)


def bit_runs(bits: bytearray) -> Iterator[tuple[int, int]]:
    """Half-open runs of set bits."""
    start = -1
    for index, value in enumerate(bits):
        if value in (0, 0xFF) and (value == 0xFF) == (start >= 0):
            continue
        for bit in range(8):
            found = value >> bit & 1
            if found and start < 0:
                start = index * 8 + bit
            elif not found and start >= 0:
                yield start, index * 8 + bit
                start = -1
    if start >= 0:
        yield start, len(bits) * 8


def pack_directory(bitmaps: list[Bitmap]) -> bytes:
    """The directory, and where in it each entry is (set in the bitmaps)."""
    parts = bytearray()
    for bitmap in bitmaps:
        name = bitmap.name.encode()
        bitmap.entry_offset = len(parts)
        fields = (bitmap.table_offset, bitmap.table_entries, bitmap.flags, 1, bitmap.granularity_bits)
        parts += _ENTRY.pack(*fields, len(name), 0) + name
        parts += bytes(-len(parts) % 8)
    return bytes(parts)


def pack_extension(count: int, size: int, offset: int) -> bytes:
    """The header extension that names the directory."""
    return _EXTENSION.pack(count, 0, size, offset)


def directory_place(header: q.Header) -> tuple[int, int]:
    """(offset, bytes) of the directory; (0, 0) without one."""
    extension = header.extension(q.EXTENSION_BITMAPS)
    if extension is None or not header.autoclear & q.AUTOCLEAR_BITMAPS:
        return 0, 0
    _, _, size, offset = _EXTENSION.unpack(extension)
    return offset, size
