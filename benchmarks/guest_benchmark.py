"""One static program measured on the host, under sublet's translator and under QEMU's TCG, in turns.

Each round runs every side once, so that what else the host does hits all alike. A side that cannot run is
named with its reason and left out. The checksums that the program prints must be the same on every side.

    python benchmarks/guest_benchmark.py --rounds 3 --json result.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from installed import compile_modules

from sublet.errors import SubletError
from sublet.guest import prepare_guest
from sublet.guest.cpio import CpioWriter
from sublet.guest.store import cache_directory

SOURCE: Final = Path(__file__).parent / "guest" / "bench.c"
CFLAGS: Final = ("-O2", "-static", "-ffp-contract=off")
TIME_LIMIT_S: Final = 300
BOOT_GUEST: Final = "boot (guest clock)"
BOOT_WALL: Final = "boot (wall clock)"

_ROW: Final = re.compile(rb"row (\S+) (\d+) ([0-9.]+) ([0-9a-f]{16})")
_INIT: Final = re.compile(rb"init ([0-9.]+)\r?\n")


@dataclass(frozen=True)
class Side:
    """One way to run the program: its command, and what is added to its environment."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """What one run printed: nanoseconds an operation by row, and checksums by row."""

    times_ns: dict[str, float] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def build_program(directory: Path, bits: int) -> Path:
    """Compile the benchmark; 32-bit code as Debian's i386 has it, with SSE2 for the rows that use it."""
    program = directory / "bench"
    compiler = os.environ.get("CC", "cc")
    width = ["-m32", "-march=i686", "-msse2"] if bits == 32 else []
    subprocess.run([compiler, *width, *CFLAGS, "-o", str(program), str(SOURCE), "-lm"], check=True)
    return program


def build_initramfs(directory: Path, program: Path) -> Path:
    """An initramfs with nothing but the program as its first process."""
    path = directory / "bench.cpio"
    with path.open("wb") as stream:
        archive = CpioWriter(stream)
        for name in ("dev", "proc", "tmp"):
            archive.directory(name)
        archive.character_device("dev/console", 5, 1)
        archive.file("init", program.read_bytes(), 0o755)
        archive.close()
    return path


def newest_qemu() -> str | None:
    """The ``qemu-system-x86_64`` of the highest version on PATH and of ``scripts/fetch-newest-qemu``."""
    fetched = cache_directory() / "tests/qemu/bin"
    folders = [*os.environ.get("PATH", "").split(os.pathsep), str(fetched)]
    found = {shutil.which("qemu-system-x86_64", path=folder) for folder in folders} - {None}
    return max((path for path in found if path), key=_qemu_version, default=None)


def _qemu_version(path: str) -> tuple[int, ...]:
    result = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", result.stdout)
    return tuple(map(int, match.groups())) if match else (0,)


def make_sides(options: argparse.Namespace, directory: Path) -> list[Side]:
    """Every side that was asked for and can run here."""
    program = build_program(directory, options.bits)
    variables = {"BENCH_SECONDS": str(options.seconds), "BENCH_ROWS": options.rows}
    sides = [Side("native", [str(program)], variables)] if "native" in options.sides else []
    if {"sublet", "qemu"} & set(options.sides):
        kernel = options.kernel or prepare_guest("default", _report).kernel
        initramfs = build_initramfs(directory, program)
        assignments = " ".join(f"{name}={value}" for name, value in variables.items() if value)
        append = f"console=ttyS0 quiet panic=-1 {assignments} {options.append}".strip()
        sides += _guest_sides(options, str(kernel), str(initramfs), append)
    return sides


def _guest_sides(options: argparse.Namespace, kernel: str, initramfs: str, append: str) -> list[Side]:
    boot = ["-kernel", kernel, "-initrd", initramfs, "-append", append]
    sides = []
    sublet = Path(sys.executable).with_name("sublet")
    if "sublet" in options.sides:
        if sublet.exists():
            flags = [f"-{word}" if word.startswith("-") else word for word in boot]
            command = [str(sublet), "run", "--engine", options.engine, *flags]
            sides.append(Side("sublet", [*command, "--memory", f"{options.memory}M", "--no-reboot"]))
        else:
            _report(f"sublet is left out: {sublet} does not exist")
    if "qemu" in options.sides:
        qemu = options.qemu or newest_qemu()
        if qemu:
            machine = ["-accel", "tcg", "-cpu", "max", "-m", str(options.memory), "-nodefaults", "-no-reboot"]
            sides.append(Side("qemu", [qemu, *machine, "-display", "none", "-serial", "stdio", *boot]))
        else:
            _report("QEMU is left out: there is no qemu-system-x86_64 on PATH")
    return sides


def run_side(side: Side) -> Run:
    """Run one side to its end, or to the time limit."""
    run = Run()
    started = time.monotonic()
    process = subprocess.Popen(
        side.command,
        env={**os.environ, **side.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    timer = threading.Timer(TIME_LIMIT_S, process.kill)
    timer.start()
    errors: list[bytes] = []
    assert process.stdout is not None
    assert process.stderr is not None
    drain = threading.Thread(target=lambda stream: errors.append(stream.read()), args=(process.stderr,))
    drain.start()
    try:
        finished = False
        for line in process.stdout:
            finished |= line.strip() == b"done"
            _read_line(line, started, run)
        process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        drain.join()
        process.stdout.close()
        process.stderr.close()
    if not finished:
        said = b"".join(errors).decode(errors="replace").strip().splitlines() or ["nothing on standard error"]
        run.problem = f"ended early with exit code {process.returncode}: {said[-1]}"
    return run


def _read_line(line: bytes, started: float, run: Run) -> None:
    if match := _ROW.search(line):
        name = match.group(1).decode()
        run.times_ns[name] = float(match.group(3))
        run.checksums[name] = match.group(4).decode()
    elif match := _INIT.search(line):
        run.times_ns[BOOT_GUEST] = float(match.group(1)) * 1e9
        run.times_ns[BOOT_WALL] = (time.monotonic() - started) * 1e9


def summarize(runs: Mapping[str, list[Run]]) -> dict[str, dict[str, dict[str, float]]]:
    """Median, minimum and maximum in nanoseconds, by row and side."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for side, side_runs in runs.items():
        for name in dict.fromkeys(name for run in side_runs for name in run.times_ns):
            values = [run.times_ns[name] for run in side_runs if name in run.times_ns]
            figures = {"median_ns": statistics.median(values), "min_ns": min(values), "max_ns": max(values)}
            summary.setdefault(name, {})[side] = figures
    return summary


def wrong_checksums(runs: Mapping[str, list[Run]]) -> list[str]:
    """Rows whose result differs between any two runs."""
    seen: dict[str, set[str]] = {}
    for side_runs in runs.values():
        for run in side_runs:
            for name, checksum in run.checksums.items():
                seen.setdefault(name, set()).add(checksum)
    return sorted(name for name, checksums in seen.items() if len(checksums) > 1)


RATIOS: Final = (("sublet", "native"), ("qemu", "native"), ("qemu", "sublet"))


def print_table(summary: Mapping[str, Mapping[str, Mapping[str, float]]], sides: Sequence[str]) -> None:
    """Medians with their spread (half the range, in percent), then ratios of medians."""
    ratios = [(over, under) for over, under in RATIOS if over in sides and under in sides]
    heads = [f"{side:>19}" for side in sides] + [f"{over + '/' + under:>15}" for over, under in ratios]
    print(f"{'row':<20}", *heads)
    for name, by_side in summary.items():
        cells = [f"{_cell(by_side.get(side)):>19}" for side in sides]
        cells += [f"{_ratio(by_side, over, under):>15}" for over, under in ratios]
        print(f"{name:<20}", *cells)


def _cell(figures: Mapping[str, float] | None) -> str:
    if figures is None:
        return "-"
    spread = 50 * (figures["max_ns"] - figures["min_ns"]) / figures["median_ns"]
    return f"{_duration(figures['median_ns'])} ±{spread:3.0f}%"


def _duration(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.2f} {unit}"
    return f"{nanoseconds:.2f} ns"


def _ratio(by_side: Mapping[str, Mapping[str, float]], over: str, under: str) -> str:
    if over not in by_side or under not in by_side:
        return "-"
    return f"{by_side[over]['median_ns'] / by_side[under]['median_ns']:.2f}x"


def _report(message: str, done: int = 0, total: int = 0) -> None:
    share = f" {100 * done // total}%" if total else ""
    print(f"{message}{share}", file=sys.stderr)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often each side runs (default 1)")
    parser.add_argument("--seconds", type=float, default=0.3, help="time for each row (default 0.3)")
    parser.add_argument("--rows", default="", help="comma-separated rows (default all)")
    parser.add_argument("--sides", type=lambda text: text.split(","), default=["native", "sublet", "qemu"])
    parser.add_argument("--engine", default="translate", help="sublet's engine (default translate)")
    parser.add_argument("--memory", type=int, default=512, help="MiB for each guest (default 512)")
    parser.add_argument("--kernel", type=Path, help="kernel image (default: that of the guest 'default')")
    parser.add_argument(
        "--bits", type=int, choices=(32, 64), default=64, help="width of the program (32: gcc-multilib)"
    )
    parser.add_argument("--append", default="", help="more words for the kernel's command line")
    parser.add_argument("--qemu", help="path of qemu-system-x86_64 (default: the newest)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, directory: Path) -> int:
    """All rounds; 0 when every side ran to its end with the same results."""
    sides = make_sides(options, directory)
    runs: dict[str, list[Run]] = {side.name: [] for side in sides}
    for number in range(options.rounds):
        for side in sides:
            _report(f"round {number + 1} of {options.rounds}: {side.name}")
            runs[side.name].append(run_side(side))
    summary = summarize(runs)
    print_table(summary, [side.name for side in sides])
    problems = [
        f"{name}: {run.problem}" for name, side_runs in runs.items() for run in side_runs if run.problem
    ]
    problems += [f"{name}: the sides disagree on the result" for name in wrong_checksums(runs)]
    for problem in problems:
        print(f"problem: {problem}")
    if options.json:
        commands = {side.name: list(side.command) for side in sides}
        result = {"commands": commands, "rounds": options.rounds, "rows": summary, "problems": problems}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if problems else 0


def main() -> int:
    """Entry point."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            options = parse_options()
            compile_modules()
            return measure(options, Path(directory))
        except SubletError as error:
            print(f"error: {error.message}. {error.remedy}".strip(), file=sys.stderr)
            return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
