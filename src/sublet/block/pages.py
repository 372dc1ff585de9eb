"""A bounded cache of the 4 KiB pages of an image's tables, with the changed ones kept apart until written."""

from __future__ import annotations

from collections.abc import Callable

PAGE = 4096


class Pages:
    """Pages of a file, or of a table in it, read on demand. Not thread-safe: the image's lock guards it.

    Args:
        read: ``read(offset, size)`` gives that many bytes of the table.
        length: Bytes of the table; the last page may be short.
        capacity: Unchanged pages to keep at most.
    """

    def __init__(self, read: Callable[[int, int], bytes], length: int, capacity: int = 2048) -> None:
        self._read = read
        self._length = length
        self._capacity = capacity
        self._clean: dict[int, bytearray] = {}
        self.dirty: dict[int, bytearray] = {}
        """Changed pages by number, not yet handed to ``settle``."""

    def page(self, number: int) -> bytearray:
        """Page ``number`` for reading."""
        found = self._clean.get(number)
        if found is None:
            found = self.dirty.get(number)
        if found is None:
            found = self._load(number)
        return found

    def change(self, number: int) -> bytearray:
        """Page ``number`` for writing; it is dirty from here on."""
        page = self.page(number)
        self.dirty[number] = page
        self._clean.pop(number, None)
        return page

    def settle(self) -> None:
        """The dirty pages were written: they are clean."""
        for number, page in self.dirty.items():
            self._keep(number, page)
        self.dirty.clear()

    def _load(self, number: int) -> bytearray:
        start = number * PAGE
        page = bytearray(self._read(start, min(PAGE, self._length - start)))
        self._keep(number, page)
        return page

    def _keep(self, number: int, page: bytearray) -> None:
        while len(self._clean) >= self._capacity:
            del self._clean[next(iter(self._clean))]
        self._clean[number] = page
