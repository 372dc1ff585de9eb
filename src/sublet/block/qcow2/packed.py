"""Compressed clusters of a QCOW2 disk: written side by side, read whole."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from sublet.block.qcow2 import layout as q
from sublet.block.qcow2.compression import compress, decompress

if TYPE_CHECKING:
    from sublet.block.qcow2.image import Qcow2Image

_PLAIN_MAXIMUM: Final = 8
"""Decompressed clusters that are kept."""


class PackedClusters:
    """Those of one image, which locks by itself."""

    def __init__(self, image: Qcow2Image) -> None:
        self._image = image
        self._bits = image.header.cluster_bits
        self._cluster = image.header.cluster_size
        self._plain: OrderedDict[int, bytes] = OrderedDict()
        self._next = 0
        self._end = 0

    def forget(self) -> None:
        """Clusters may hold something else from now on, or be free."""
        self._plain.clear()
        self._next = self._end = 0

    def read(self, entry: int) -> bytes:
        """The content of the whole cluster of an L2 entry."""
        image = self._image
        with image.lock:
            plain = self._plain.get(entry)
            if plain is not None:
                self._plain.move_to_end(entry)
                return plain
            offset, size = q.compressed_range(entry, self._bits)
            packed = image.file.read(offset, size)
        plain = decompress(packed, self._cluster, image.header.compression)
        with image.lock:
            self._plain[entry] = plain
            while len(self._plain) > _PLAIN_MAXIMUM:
                self._plain.popitem(last=False)
        return plain

    def write(self, offset: int, view: memoryview) -> bool:
        """Write a cluster, which the disk's end may cut short; False when it does not get smaller."""
        image = self._image
        padded = view if len(view) == self._cluster else bytes(view).ljust(self._cluster, b"\0")
        packed = compress(padded, image.header.compression)
        if len(packed) >= self._cluster:
            return False
        l1_index, index = image.mapping.place(offset)
        with image.lock:
            table = image.allocation.own_l2(l1_index)
            host = self._allocate(len(packed))
            image.file.write(host, packed)
            image.bitmaps.mark(offset, len(view))
            image.allocation.grow(host + len(packed))
            entry = q.compressed_entry(host, len(packed), self._bits)
            if image.header.extended_l2:
                image.allocation.set_extended(table, index, entry, 0)
            else:
                image.allocation.set_entries(table, index, array("Q", (entry,)))
            image.limit_dirty()
        return True

    def _allocate(self, size: int) -> int:
        """Offset for ``size`` bytes, fewer than a cluster; each cluster that they touch is counted once."""
        refcounts = self._image.refcounts
        begun = self._next >> self._bits
        shared = self._next < self._end
        shared = shared and refcounts.get(begun) < refcounts.maximum
        if shared and self._next + size <= self._end:
            host = self._next
            refcounts.increment(begun)
        else:
            first, _ = refcounts.allocate(1)
            if shared and first << self._bits == self._end:
                host = self._next
                refcounts.increment(begun)
            else:
                host = first << self._bits
            self._end = first + 1 << self._bits
        self._next = host + size
        return host
