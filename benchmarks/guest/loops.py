"""Pure Python work for ``programs.py``, of a kind and a count; prints a result that depends on all of it.

python3 loops.py integers 100000
"""

from __future__ import annotations

import sys


class Account:
    """A small object whose method and attributes are used over and over."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.balance = 0

    def pay(self, amount: int) -> int:
        self.balance = (self.balance * 31 + amount) % 1_000_003
        return self.balance


def integers(count: int) -> int:
    """Steps of a Collatz sequence from each number below ``count``."""
    steps = 0
    for start in range(1, count):
        value = start
        while value > 1 and steps & 0x3F != 0x3F:
            value = value * 3 + 1 if value & 1 else value >> 1
            steps += 1
        steps += 1
    return steps


def objects(count: int) -> int:
    """Attributes, calls and a dictionary, ``count`` times."""
    accounts = {f"account {number}": Account(number) for number in range(97)}
    names = list(accounts)
    total = 0
    for turn in range(count):
        total += accounts[names[turn * 7 % 97]].pay(turn)
    return total


def strings(count: int) -> int:
    """Formatting, splitting, joining and counting, ``count`` times."""
    seen: dict[str, int] = {}
    for turn in range(count):
        line = f"{turn % 1013:05d};{turn * 17 % 211:x};{turn % 5}"
        key = "-".join(sorted(line.split(";"), key=len))
        seen[key] = seen.get(key, 0) + len(line)
    return sum(value * (position + 1) for position, (_, value) in enumerate(sorted(seen.items())))


KINDS = {"integers": integers, "objects": objects, "strings": strings}

if __name__ == "__main__":
    print(KINDS[sys.argv[1]](int(sys.argv[2])))
