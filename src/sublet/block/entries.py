"""Tables of 32-bit block pointers in an image file: cached, and written in two steps.

VDI's block map and VMDK's grain tables are arrays of little-endian 32-bit numbers. A pointer may reach the
file only after what it points to, so a changed entry stays in memory until ``write_changes``, which its
caller puts between two barriers. Until then a crash loses the pointer alone: what it points to is leaked,
never torn.
"""

from __future__ import annotations

import sys
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from sublet.block.hostfile import HostFile

_ENTRY = 4
_PAGES = 256


class EntryPages:
    """Pages of entries, each named by its offset in the file. The caller's lock guards every method.

    Args:
        file: Where the pages lie.
        page_entries: Entries of a page.
    """

    def __init__(self, file: HostFile, page_entries: int) -> None:
        self._file = file
        self._page_entries = page_entries
        self._page_size = page_entries * _ENTRY
        self._pages: OrderedDict[int, array[int]] = OrderedDict()
        self._changed: dict[int, dict[int, int]] = {}
        self._writing: dict[int, dict[int, int]] = {}
        self._change_count = 0

    @property
    def changes(self) -> int:
        """Entries that were set since the last ``take_changes``, each as often as it was set."""
        return self._change_count

    def page(self, offset: int) -> array[int]:
        """The page at byte ``offset``; not to be changed by the caller."""
        page = self._pages.get(offset)
        if page is not None:
            self._pages.move_to_end(offset)
            return page
        page = _decode(self._file.read(offset, self._page_size))
        for pending in (self._writing.get(offset), self._changed.get(offset)):
            for index, value in (pending or {}).items():
                page[index] = value
        self._pages[offset] = page
        while len(self._pages) > _PAGES:
            self._pages.popitem(last=False)
        return page

    def set(self, offset: int, index: int, value: int) -> None:
        """Change an entry of the page at ``offset``, in memory for now; ``index`` may lie past a page."""
        page = self._pages.get(offset)
        if page is not None:
            page[index] = value
        self._changed.setdefault(offset, {})[index] = value
        self._change_count += 1

    def take_changes(self) -> bool:
        """Make what was set until now what the next ``write_changes`` writes; False when that is nothing."""
        for offset, entries in self._changed.items():
            self._writing.setdefault(offset, {}).update(entries)
        self._changed = {}
        self._change_count = 0
        return bool(self._writing)

    def write_changes(self) -> None:
        """Put into the file what ``take_changes`` took; it stays pending when the host fails."""
        for offset, entries in self._writing.items():
            for start, values in runs(entries):
                self._file.write(offset + start * _ENTRY, encode(values))
        self._writing = {}

    def forget(self) -> None:
        """Drop every page; there must be no changes."""
        self._pages.clear()


def runs(entries: dict[int, int]) -> Iterator[tuple[int, list[int]]]:
    """Neighbouring indices together: first index and values."""
    start, values = -1, list[int]()
    for index in sorted(entries):
        if values and index == start + len(values):
            values.append(entries[index])
            continue
        if values:
            yield start, values
        start, values = index, [entries[index]]
    if values:
        yield start, values


def encode(values: Iterable[int]) -> bytes:
    """Little-endian bytes of 32-bit numbers."""
    return _swapped(array("I", values)).tobytes()


def decode(data: bytes) -> array[int]:
    """32-bit numbers of little-endian bytes; an odd tail is left out."""
    return _decode(data[: len(data) // _ENTRY * _ENTRY])


def _decode(data: bytes) -> array[int]:
    return _swapped(array("I", data))


def _swapped(values: array[int]) -> array[int]:
    if sys.byteorder == "big":
        values.byteswap()
    return values
