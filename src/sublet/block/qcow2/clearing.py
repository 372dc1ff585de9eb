"""Zeroes and discards of a QCOW2 disk: by its tables where whole clusters are concerned, else as data."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from sublet.block.qcow2 import layout as q

if TYPE_CHECKING:
    from sublet.block.qcow2.image import Qcow2Image


def write_zeroes(image: Qcow2Image, offset: int, size: int, *, unmap: bool) -> None:
    """Make a range that is not empty read as zeroes."""
    start, stop = _whole_clusters(image, offset, offset + size)
    if start >= stop:
        _zero_bytes(image, offset, offset + size)
        return
    _zero_bytes(image, offset, start)
    _clear(image, start, stop, unmap=unmap, reads_zero=True)
    _zero_bytes(image, stop, offset + size)


def discard(image: Qcow2Image, offset: int, size: int) -> None:
    """Give up whole clusters of a range: without a parent they are unallocated then, with one zero."""
    start, stop = _whole_clusters(image, offset, offset + size)
    # Without zero clusters (version 2) an older state of the parent would come back.
    if start < stop and (image.backing is None or image.header.version >= 3):
        _clear(image, start, stop, unmap=True, reads_zero=image.backing is not None)


def _whole_clusters(image: Qcow2Image, offset: int, end: int) -> tuple[int, int]:
    """The part of a range that is whole clusters; the disk's last is one, too, though it may be cut short."""
    cluster = image.header.cluster_size
    return -(-offset // cluster) * cluster, end if end == image.size else end // cluster * cluster


def _zero_bytes(image: Qcow2Image, offset: int, end: int) -> None:
    """Write zeroes as data, where there are none yet."""
    cluster = image.header.cluster_size
    while offset < end:
        size = min(end - offset, cluster - offset % cluster)
        with image.lock:
            image.bitmaps.mark(offset, size)
            zero = image.mapping.reads_zero(offset, size, image.backing)
        if not zero:
            image.write(offset, bytes(size))
        offset += size


def _clear(image: Qcow2Image, start: int, stop: int, *, unmap: bool, reads_zero: bool) -> None:
    """Make whole clusters zero (``reads_zero``) or unallocated; the last may pass the disk's end."""
    bits, entries = image.header.cluster_bits, image.header.l2_entries
    first, last = start >> bits, -(-stop >> bits)
    while first < last:
        with image.lock:
            count = min(last - first, entries - first % entries)
            image.bitmaps.mark(first << bits, min(count << bits, image.size - (first << bits)))
            _clear_table(image, first, count, unmap=unmap, reads_zero=reads_zero)
            image.limit_dirty()
        first += count


def _clear_table(image: Qcow2Image, first: int, count: int, *, unmap: bool, reads_zero: bool) -> None:
    """Clear ``count`` clusters of one L2 table, from cluster ``first`` of the disk on."""
    header = image.header
    l1_index, index = divmod(first, header.l2_entries)
    if image.tables.l2(l1_index) is None and (image.backing is None or not reads_zero):
        return
    guest, end = first << header.cluster_bits, first + count << header.cluster_bits
    if image.external_data:
        image.data.write_zeroes(guest, min(end, image.size) - guest, unmap=unmap)
    elif header.version < 3 and reads_zero and image.backing is not None:
        _zero_bytes(image, guest, min(image.size, end))
        return
    table = image.allocation.own_l2(l1_index)
    keep = not unmap or image.external_data
    if header.extended_l2:
        bitmap = q.ALL_ZERO if reads_zero else 0
        for position in range(index, index + count):
            old = table.entries[2 * position]
            new = old if keep and _is_own(old) else 0
            if (old, table.entries[2 * position + 1]) != (new, bitmap):
                image.allocation.set_extended(table, position, new, bitmap)
        return
    zero = q.ZERO if reads_zero and header.version >= 3 else 0
    entries = table.entries[index : index + count]
    alone, keep = image.backing is None, keep and bool(zero)
    cleared = array("Q", (_cleared(entry, zero, alone=alone, keep=keep) for entry in entries))
    if cleared != entries:
        image.allocation.set_entries(table, index, cleared)


def _cleared(entry: int, zero: int, *, alone: bool, keep: bool) -> int:
    """What a standard L2 entry becomes."""
    if not entry and alone:
        return 0
    return entry | zero if keep and _is_own(entry) else zero


def _is_own(entry: int) -> bool:
    """Whether an entry names a cluster that it alone names."""
    return bool(entry & q.COPIED) and not entry & q.COMPRESSED
