"""Pages of entries: cached, changed in memory, written when told."""

from __future__ import annotations

from pathlib import Path

from sublet.block.entries import EntryPages, decode, encode, runs
from sublet.testing.hostfile import MemoryFile


def pages(count: int = 1) -> tuple[EntryPages, bytearray]:
    """``count`` pages of four entries, 0 to 4 * count - 1."""
    data = bytearray(encode(range(4 * count)))
    return EntryPages(MemoryFile(Path("/table"), data), 4), data


def test_a_page_is_read_and_changes_stay_in_memory() -> None:
    table, data = pages()
    table.set(0, 1, 77)
    assert list(table.page(0)) == [0, 77, 2, 3]
    assert list(decode(bytes(data))) == [0, 1, 2, 3]


def test_what_was_taken_is_written_and_what_came_later_is_not() -> None:
    table, data = pages()
    table.set(0, 0, 70)
    assert table.take_changes()
    table.set(0, 0, 71)
    table.set(0, 3, 73)
    table.write_changes()
    assert list(decode(bytes(data))) == [70, 1, 2, 3]
    assert list(table.page(0)) == [71, 1, 2, 73]
    table.take_changes()
    table.write_changes()
    assert list(decode(bytes(data))) == [71, 1, 2, 73]
    assert not table.take_changes()


def test_changes_survive_when_their_page_is_dropped() -> None:
    table, _ = pages(600)
    table.set(0, 1, 77)
    for number in range(1, 600):
        table.page(16 * number)
    assert list(table.page(0)) == [0, 77, 2, 3]
    table.take_changes()
    for number in range(1, 600):
        table.page(16 * number)
    assert list(table.page(0)) == [0, 77, 2, 3]


def test_a_change_may_be_made_to_a_page_that_was_not_read() -> None:
    table, data = pages(2)
    table.set(16, 2, 99)
    table.take_changes()
    table.write_changes()
    assert list(decode(bytes(data))) == [0, 1, 2, 3, 4, 5, 99, 7]


def test_neighbours_are_written_together() -> None:
    assert list(runs({5: 1, 3: 2, 4: 3, 9: 4})) == [(3, [2, 3, 1]), (9, [4])]
    assert list(runs({})) == []
