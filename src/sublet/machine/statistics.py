"""Counters of a run, over all vCPUs and all boots of one machine: sums, and the longest times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sublet.machine.profile import Profile


class Totals:
    """Adds up counters by name (``group.counter``)."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.profile = Profile()
        """Where the guest spent its time, if that was asked for."""

    def add(self, counts: Mapping[str, int]) -> None:
        """Add each counter to the one of its name; of a ``group.longest_…`` keep the largest."""
        for name, count in counts.items():
            longest = name.partition(".")[2].startswith("longest_")
            self._counts[name] = max(self._counts[name], count) if longest else self._counts[name] + count

    def count(self, name: str) -> None:
        """Add one."""
        self._counts[name] += 1

    def as_dict(self) -> dict[str, int]:
        """All counters, by name."""
        return dict(sorted(self._counts.items()))
