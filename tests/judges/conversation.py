"""A judge that talks to a machine on its console: waits for words and types answers.

A row is a machine and a conversation. It passes when every word that is waited for comes, in order, within
the row's time limit. With ``--qemu`` QEMU's TCG has the same machine and is talked to in the same way: that
tells what is wrong with a row from what is wrong with us.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.integration.guest import Guest
from tests.judges.sides import Machine

_ESCAPE: Final = r"(?:\x1b\[[\d;?]*\w)*"
_KEY_S: Final = 0.1
"""Between two keys: a BIOS keeps 15 of them and drops the rest."""


@dataclass(frozen=True)
class Turn:
    """Wait for letters in the output, then type."""

    wait: str
    answer: str = ""

    @property
    def pattern(self) -> str:
        """A regular expression for the letters, with what moves a cursor between any two."""
        return _ESCAPE.join(map(re.escape, self.wait))


@dataclass(frozen=True)
class Row:
    """A machine and what is said to it.

    ``prepare`` makes the machine, and its media in the folder it is given, anew for each side.
    """

    name: str
    prepare: Callable[[Path], Machine]
    turns: Sequence[Turn]
    limit_s: float = 60.0
    """For each turn."""
    powers_off: bool = False
    """Whether the machine is to end by itself after the last turn."""
    slowly: bool = False
    """Type a key at a time, for loaders that have the BIOS read the serial port."""


@dataclass(frozen=True)
class Verdict:
    """``pass`` or what was missed, and the seconds from power-on."""

    verdict: str
    seconds: float


@dataclass(frozen=True)
class Result:
    """What became of a row; ``qemu`` is None where QEMU was not asked."""

    name: str
    ours: Verdict
    qemu: Verdict | None


def _type(guest: Guest, text: str, slowly: bool) -> None:
    if not slowly:
        guest.type(text)
        return
    for key in text:
        guest.type(key)
        time.sleep(_KEY_S)


def _talk(guest: Guest, row: Row) -> str:
    """Go through the row's turns; ``pass``, or what was missed."""
    missed = ""
    try:
        for turn in row.turns:
            missed = f"no {turn.wait!r}"
            guest.expect(turn.pattern, row.limit_s)
            _type(guest, turn.answer, row.slowly)
        missed = "it did not power off"
        code = guest.wait() if row.powers_off else 0
    except (AssertionError, OSError) as error:
        print(error, file=sys.stderr)
        return missed
    return f"it ended with {code}" if code else "pass"


def converse(row: Row, command: Sequence[str], log: Path | None) -> Verdict:
    """Start ``command`` and hold the row's conversation; ``log`` gets all that it printed."""
    started = time.monotonic()
    guest = Guest((), command=command)
    try:
        verdict = _talk(guest, row)
    finally:
        guest.close()
        if log:
            log.write_bytes(guest.output + guest.errors)
    return Verdict(verdict, round(time.monotonic() - started, 1))


def judge(row: Row, scratch: Path, logs: Path | None, *, qemu: bool) -> Result:
    """Run one row, on QEMU too if it is to be."""

    def run(side: str) -> Verdict:
        # A comma or a blank in a file's name would end a word of either command.
        folder = scratch / re.sub(r"\W+", "-", f"{row.name} {side}")
        folder.mkdir()
        machine = row.prepare(folder)
        command = machine.ours() if side == "ours" else machine.qemu()
        return converse(row, command, logs and logs / f"{folder.name}.log")

    return Result(row.name, run("ours"), run("qemu") if qemu else None)


def run_rows(rows: Iterable[Row], options: argparse.Namespace, scratch: Path) -> int:
    """Run those that ``--only`` names, print a table; 1 if one of ours did not pass."""
    print("| row | verdict | seconds | QEMU's TCG | seconds |\n|---|---|---|---|---|")
    results = []
    for row in rows:
        if not re.search(options.only, row.name):
            continue
        result = judge(row, scratch, options.logs, qemu=options.qemu)
        results.append(asdict(result))
        theirs = [result.qemu.verdict, result.qemu.seconds] if result.qemu else ["", ""]
        cells = [result.name, result.ours.verdict, result.ours.seconds, *theirs]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if any(result["ours"]["verdict"] != "pass" for result in results) else 0


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every such judge has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose names match this regular expression")
    parser.add_argument("--qemu", action="store_true", help="run the rows in QEMU too")
    parser.add_argument("--logs", type=Path, help="keep there what each machine printed")
    parser.add_argument("--json", type=Path)
    return parser
