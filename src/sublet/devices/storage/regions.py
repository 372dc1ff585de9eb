"""Tables of memory regions that a transfer goes through, piece by piece."""

from __future__ import annotations

import abc
from collections.abc import Iterator

from sublet.hw import GuestMemory


class RegionWalk(abc.ABC):
    """Walks a table in guest memory as a transfer goes on.

    Args:
        memory: Where the table lies.
        table: The guest-physical address of its first entry.
    """

    def __init__(self, memory: GuestMemory, table: int) -> None:
        self._memory = memory
        self._next = table
        self._base = 0
        self._left = 0

    def take(self, size: int) -> Iterator[tuple[int, int]]:
        """Up to ``size`` bytes of memory as (address, length), in order; fewer at the table's end.

        Raises:
            GuestError: The table is not in RAM.
        """
        while size and (self._left or self._fetch()):
            length = min(size, self._left)
            yield self._base, length
            self._base += length
            self._left -= length
            size -= length

    @abc.abstractmethod
    def _fetch(self) -> bool:
        """Take the next entry into ``_base`` and ``_left``, move ``_next`` on; false at the table's end."""
