"""What a guest at its shell's prompt costs the host, under sublet and under QEMU's TCG.

    cpu         share of one processor that the machine's process takes, in percent
    wake-ups    times a second that one of its threads went on after it had waited
    timers      interrupts a second that the guest itself asked its timers for, or got
    beyond      wake-ups less timers: what the machine's own work is
    memory      MiB of the process beyond the guest's RAM and translated code

The guest is ``default`` without a network and with one vCPU: it sleeps, and tells its interrupts before and
after. The host's counts (proc(5): stat, status of each task, smaps) begin and end within that sleep.

    python benchmarks/idle.py --rounds 3 --seconds 20 --json result.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from console import Console, at_prompt
from guest_benchmark import newest_qemu
from installed import compile_modules

from sublet.guest import PreparedGuest, prepare_guest

SIDES: Final = ("sublet", "qemu")
PROMISES: Final = {"cpu": 0.5, "beyond": 30.0, "memory": 60.0}
"""Percent, wake-ups a second, MiB: at most so much, of sublet."""
SETTLE_S: Final = 5.0
MARGIN_S: Final = 1.0
MEBIBYTE: Final = 1 << 20


@dataclass
class Idle:
    """One measurement; the fields are the table's columns."""

    cpu: float
    wake_ups: float
    timers: float
    beyond: float
    memory: float


@dataclass
class HostCounts:
    """What the host has counted of a process so far."""

    cpu_s: float
    wake_ups: int
    at_s: float


def host_counts(pid: int) -> HostCounts:
    """Processor time and voluntary switches of all threads that live."""
    fields_of_stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields_of_stat[11]) + int(fields_of_stat[12])
    statuses = (task.joinpath("status").read_text() for task in Path(f"/proc/{pid}/task").iterdir())
    switches = (re.search(r"^voluntary_ctxt_switches:\s*(\d+)", text, re.MULTILINE) for text in statuses)
    wake_ups = sum(int(found[1]) for found in switches if found)
    return HostCounts(ticks / os.sysconf("SC_CLK_TCK"), wake_ups, time.monotonic())


def memory_beyond(pid: int, ram: int) -> float:
    """MiB resident beyond the guest's RAM and code that was translated.

    RAM is a shared file of memory, or the one anonymous mapping as large as it; QEMU's code is memory that
    may be written and run.
    """
    total = skipped = 0
    skip = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if header := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+\s*(.*)", line):
            size = int(header[2], 16) - int(header[1], 16)
            memory_file = header[4].startswith("/memfd:")
            skip = memory_file or size == ram or {"w", "x"} <= set(header[3])
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) * 1024
            total += resident
            skipped += resident if skip else 0
    return (total - skipped) / MEBIBYTE


def timer_interrupts(text: str) -> int:
    """Interrupts of timers that a guest's /proc/interrupts tells of: the local APIC's, and line 0."""
    lines = (line.split() for line in text.splitlines())
    return sum(int(words[1]) for words in lines if len(words) > 1 and words[0] in ("LOC:", "0:"))


def measure(console: Console, seconds: float, ram: int) -> Idle:
    """Let the guest sleep, and count meanwhile."""
    time.sleep(SETTLE_S)
    sleep = round(seconds + 2 * MARGIN_S)
    console.type(f"cat /proc/interrupts; echo mid''dle; sleep {sleep}; cat /proc/interrupts")
    time.sleep(MARGIN_S)
    before = host_counts(console.pid)
    time.sleep(seconds)
    after = host_counts(console.pid)
    memory = memory_beyond(console.pid, ram)
    earlier, _, later = console.answer()[0].decode(errors="replace").partition("middle")
    timers = (timer_interrupts(later) - timer_interrupts(earlier)) / sleep
    elapsed = after.at_s - before.at_s
    wake_ups = (after.wake_ups - before.wake_ups) / elapsed
    cpu = 100 * (after.cpu_s - before.cpu_s) / elapsed
    return Idle(cpu, wake_ups, timers, max(0.0, wake_ups - timers), memory)


def command(options: argparse.Namespace, side: str, guest: PreparedGuest) -> list[str]:
    """What starts a side."""
    boot = ["--kernel", str(guest.kernel), "--initrd", str(guest.initrd), "--append", guest.cmdline]
    if side == "sublet":
        machine = [sys.executable, "-m", "sublet", "run", "--engine", options.engine, "--net", "none"]
        return [*machine, "--memory", f"{options.memory}M", *boot]
    machine = ["-accel", "tcg", "-cpu", "max", "-m", str(options.memory), "-nodefaults", "-display", "none"]
    return [options.qemu, *machine, "-serial", "stdio", *(word.replace("--", "-") for word in boot)]


def run_side(options: argparse.Namespace, side: str) -> Idle:
    """Boot, wait, measure."""
    guest = prepare_guest("default")
    try:
        with at_prompt(command(options, side, guest), options.limit) as console:
            return measure(console, options.seconds, options.memory * MEBIBYTE)
    finally:
        guest.close()


def print_table(rounds: Sequence[dict[str, Idle]], sides: Sequence[str]) -> bool:
    """Medians of every column, and whether sublet's are as promised."""
    names = [field.name for field in fields(Idle)]
    print(f"{'side':8}" + "".join(f"{name:>10}" for name in names))
    kept = True
    for side in sides:
        medians = {name: statistics.median(getattr(each[side], name) for each in rounds) for name in names}
        print(f"{side:8}" + "".join(f"{medians[name]:10.2f}" for name in names))
        if side == "sublet":
            kept = all(medians[name] <= most for name, most in PROMISES.items())
    return kept


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--memory", type=int, default=256, help="MiB of guest memory")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one boot and its measurement")
    parser.add_argument("--engine", default="translate")
    parser.add_argument("--qemu", default=newest_qemu())
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure each side in turn and print the table."""
    options = parse_options()
    compile_modules()
    sides = [side for side in options.sides if side != "qemu" or options.qemu]
    rounds = []
    for number in range(options.rounds):
        rounds.append({side: run_side(options, side) for side in sides})
        told = {side: asdict(idle) for side, idle in rounds[-1].items()}
        print(f"round {number + 1}: {json.dumps(told)}", file=sys.stderr, flush=True)
    kept = print_table(rounds, sides)
    print("as promised" if kept else f"promised of sublet, at most: {PROMISES}")
    if options.json:
        told = [{side: asdict(idle) for side, idle in each.items()} for each in rounds]
        options.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
