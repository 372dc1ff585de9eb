"""Adding, removing and storing the bitmaps of a QCOW2 image.

Anything new is written beside the old and counted before the header or the directory names it. The image's
lock is held throughout.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from sublet.block.qcow2 import layout as q
from sublet.block.qcow2.bitmaps import (
    AUTO,
    BITMAPS_MAXIMUM,
    BITS_MAXIMUM,
    IN_USE,
    Bitmap,
    bits_bytes,
    directory_place,
    pack_directory,
    pack_extension,
    read_table,
)
from sublet.block.qcow2.rewrite import write_whole_header
from sublet.errors import UsageError

if TYPE_CHECKING:
    from sublet.block.qcow2.image import Qcow2Image


def add(image: Qcow2Image, name: str, granularity: int) -> None:
    """Begin to track writes under a name, nothing dirty yet.

    Raises:
        UsageError: The name is empty, long or taken, or the granularity no power of two from 512 to 2 GiB.
    """
    header, bitmaps = image.header, image.bitmaps
    if header.version < 3:
        raise UsageError(f"{image.path} is of version 2, which has no bitmaps")
    if not name or len(name.encode()) > 1023 or any(name == other.name for other in bitmaps.all):
        raise UsageError(f"{name!r} is empty, too long or taken: a bitmap needs another name")
    if granularity & (granularity - 1) or not 512 <= granularity <= 1 << 31:
        raise UsageError(f"a granularity of {granularity} bytes: it is a power of two from 512 to 2G")
    if len(bitmaps.all) >= BITMAPS_MAXIMUM:
        raise UsageError(f"{image.path} has {BITMAPS_MAXIMUM} bitmaps, as many as there can be")
    bitmap = Bitmap(name, granularity.bit_length() - 1, AUTO | IN_USE, 0, 0, 0)
    size = bits_bytes(header.size, bitmap)
    if size > BITS_MAXIMUM:
        raise UsageError(f"a granularity of {granularity} bytes makes too many bits for the disk")
    _new_table(image, bitmap, size)
    _write_directory(image, [*bitmaps.all, bitmap])
    bitmaps.bits[name] = bytearray(size)


def remove(image: Qcow2Image, name: str) -> None:
    """Forget a bitmap.

    Raises:
        UsageError: There is none of that name.
    """
    bitmap = image.bitmaps.find(name)
    clusters = read_table(image.file, bitmap)
    _write_directory(image, [other for other in image.bitmaps.all if other is not bitmap])
    image.bitmaps.bits.pop(name, None)
    _release_table(image, bitmap, clusters)
    image.write_metadata()


def store(image: Qcow2Image) -> None:
    """Write the bits that are in memory, and then say that they can be trusted."""
    bitmaps = image.bitmaps
    tracked = [bitmap for bitmap in bitmaps.all if bitmap.name in bitmaps.bits]
    if not tracked:
        return
    moved = [_store_one(image, bitmap, bitmaps.bits[bitmap.name]) for bitmap in tracked]
    if any(moved):
        # An old table may be freed only when no directory names it.
        _write_directory(image, bitmaps.all)
    image.write_metadata()
    for bitmap in tracked:
        bitmap.flags &= ~IN_USE
        bitmaps.write_flags(bitmap)
    image.file.flush()
    bitmaps.bits.clear()


def _store_one(image: Qcow2Image, bitmap: Bitmap, bits: bytearray) -> bool:
    """Write bits and table of a bitmap that is marked as in use; whether the table is elsewhere now."""
    cluster, bits_of = image.header.cluster_size, image.header.cluster_bits
    old = read_table(image.file, bitmap)
    entries = max(1, -(-len(bits) // cluster))
    moved = len(old) != entries
    if moved:
        _release_table(image, bitmap, old)
        old = [0] * entries
        _new_table(image, bitmap, len(bits))
    table = array("Q")
    for number, entry in enumerate(old):
        piece = bytes(bits[number * cluster : (number + 1) * cluster])
        host = entry & q.OFFSET_MASK
        uniform = not any(piece) or piece.count(0xFF) == len(piece)
        if uniform and host:
            image.refcounts.release(host >> bits_of)
        if uniform:
            table.append(1 if any(piece) else 0)
            continue
        if not host:
            first, _ = image.refcounts.allocate(1)
            host = first << bits_of
        image.file.write(host, piece.ljust(cluster, b"\0"))
        table.append(host)
    # The counts of new clusters must be there before the table that names them.
    image.write_counts()
    image.file.write(bitmap.table_offset, q.table_to_bytes(table))
    return moved


def _new_table(image: Qcow2Image, bitmap: Bitmap, size: int) -> None:
    """Give a bitmap an empty table for ``size`` bytes of bits."""
    cluster = image.header.cluster_size
    bitmap.table_entries = max(1, -(-size // cluster))
    clusters = -(-bitmap.table_entries * 8 // cluster)
    first = image.refcounts.allocate_exact(clusters)
    bitmap.table_offset = first * cluster
    image.file.write(bitmap.table_offset, bytes(clusters * cluster))


def _release_table(image: Qcow2Image, bitmap: Bitmap, entries: list[int]) -> None:
    bits = image.header.cluster_bits
    for entry in entries:
        if entry & q.OFFSET_MASK:
            image.refcounts.release((entry & q.OFFSET_MASK) >> bits)
    if bitmap.table_entries:
        clusters = -(-bitmap.table_entries * 8 // image.header.cluster_size)
        image.refcounts.release(bitmap.table_offset >> bits, clusters)


def _write_directory(image: Qcow2Image, bitmaps: list[Bitmap]) -> None:
    """Write the directory elsewhere and let the header name it."""
    header = image.header
    old_offset, old_size = directory_place(header)
    held = list(image.refcounts.releases)
    image.refcounts.releases.clear()
    data = pack_directory(bitmaps)
    offset = 0
    if bitmaps:
        clusters = -(-len(data) // header.cluster_size)
        offset = image.refcounts.allocate_exact(clusters) * header.cluster_size
        image.file.write(offset, data.ljust(clusters * header.cluster_size, b"\0"))
        for bitmap in bitmaps:
            bitmap.entry_offset += offset
    image.write_metadata()
    extension = pack_extension(len(bitmaps), len(data), offset) if bitmaps else None
    header.set_extension(q.EXTENSION_BITMAPS, extension)
    header.autoclear &= ~q.AUTOCLEAR_BITMAPS
    header.autoclear |= q.AUTOCLEAR_BITMAPS if bitmaps else 0
    write_whole_header(image)
    image.bitmaps.all = bitmaps
    image.refcounts.releases.extend(held)
    if old_size:
        count = -(-old_size // header.cluster_size)
        image.refcounts.release(old_offset >> header.cluster_bits, count)
