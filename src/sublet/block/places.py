"""What the core is told of a format's clusters, so that it reads and overwrites them past the format.

A format that keeps its tables in a shape of its own tells where a cluster is when it has looked it up. The
core looks at tables of 64-bit entries in the shape of QCOW2's, a bounded number of them; what is not in them
the format answers, and tells again.

Rules for a format: it tells under its lock, and only of clusters all of whose bytes are in the file and its
own. Before a cluster's storage becomes another's it says ``gone``, and waits (``settle``). Whatever moves
clusters runs ``alone``.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sublet.block.hostfile import HostFile, descriptor
from sublet.core import InPlace, store_entries

TABLE_ENTRIES: Final = InPlace.PLACES
"""Clusters of one table."""
_TABLES_MAXIMUM: Final = 2048
"""Tables that are kept: 8 MiB."""
_OWN: Final = 1 << 63
_ALIGNMENT: Final = 512
_CLUSTER_BITS: Final = range(9, 31)


class Places:
    """The way past a format with clusters of one size in one file.

    Nothing is written past the format until ``allow_writes``.

    Args:
        file: Where the clusters are.
        size: Bytes of the disk.
        cluster_size: Bytes; where it is no power of two that the core takes, nothing goes past the format.
    """

    def __init__(self, file: HostFile, size: int, cluster_size: int) -> None:
        bits = cluster_size.bit_length() - 1
        fits = bits in _CLUSTER_BITS and cluster_size == 1 << bits
        fd = descriptor(file) if fits else None
        self.in_place = InPlace.places(fd, size, bits if fits else _CLUSTER_BITS[0])
        self._useful = fd is not None
        self._writes = False
        self._tables: OrderedDict[int, array[int]] = OrderedDict()

    def found(self, cluster: int, host: int) -> None:
        """``cluster`` is at byte ``host`` of the file, all of it the image's own."""
        if not self._useful or host % _ALIGNMENT:
            return
        number, within = divmod(cluster, TABLE_ENTRIES)
        table = self._tables.get(number)
        if table is None:
            table = self._add_table(number)
        store_entries(table, within, array("Q", (host | _OWN,)))

    def gone(self, cluster: int) -> None:
        """``cluster`` is no longer where it was, or not in full."""
        number, within = divmod(cluster, TABLE_ENTRIES)
        table = self._tables.get(number)
        if table is not None:
            store_entries(table, within, array("Q", (0,)))

    def settle(self) -> None:
        """Wait for accesses that found what has gone since."""
        self.in_place.shut()
        self.in_place.open()

    def allow_writes(self) -> None:
        """The format has marked its file as changed: from here on others may change data."""
        if self._writes:
            return
        self._writes = True
        self.in_place.shut()
        self.in_place.set_writable(True)
        self.in_place.open()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody goes past the format, and what was told is forgotten."""
        self.in_place.shut()
        try:
            self.forget()
            yield
        finally:
            self.forget()
            self.in_place.open()

    def forget(self) -> None:
        """Drop all that was told."""
        self.in_place.clear()
        self._tables.clear()

    def resize(self, size: int) -> None:
        """The disk has another size. Precondition: ``alone``."""
        self.in_place.resize(size)

    def _add_table(self, number: int) -> array[int]:
        while len(self._tables) >= _TABLES_MAXIMUM:
            self._drop_one()
        table = self._tables[number] = array("Q", bytes(8 * TABLE_ENTRIES))
        self.in_place.attach(number, table, True)
        return table

    def _drop_one(self) -> None:
        """Drop the table that was told first of those that were not looked at lately."""
        for number in list(self._tables):
            if not self.in_place.take_used(number):
                break
            self._tables.move_to_end(number)
        else:
            number = next(iter(self._tables))
        self.in_place.detach(number)
        del self._tables[number]
