"""Independent programs from Debian's packages, inside a booted ``debian`` guest: under sublet and QEMU's TCG.

Each round boots every side once, from a fresh copy of the same disk, logs in on the serial console and runs
the programs one after the other. The side ``native`` runs the same binaries on the host, in a chroot of what
is on that disk. Times are by the host's clock; ``openssl`` counts by its own. Every result is checked in the
guest, and its checksum must be the same on every side.

    python benchmarks/programs.py --rounds 5 --scale 5 --mib 100 --json result.json
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from guest_benchmark import Run, newest_qemu, print_table, summarize, wrong_checksums
from installed import compile_modules

from sublet.errors import SubletError
from sublet.guest import PreparedGuest, prepare_guest

FILES: Final = Path(__file__).parent / "guest"
DRIVER: Final = "programs.bash"
BOOT: Final = "boot to login"
SIDES: Final = ("native", "sublet", "qemu")
CLOCK_TOLERANCE: Final = 0.05
"""How far a guest's clock may be from the host's over one program, as a share and in seconds on top."""

_EVENT: Final = re.compile(rb"programs: (begin|worked|said|end|finished)(?: (\S+))?(?: ([^\r\n]*))?")
_THROUGHPUT: Final = re.compile(r"\+F:\d+:[^:]+:([0-9.]+)$")
_SIGN_VERIFY: Final = re.compile(r"\+F2:\d+:\d+:([0-9.]+):([0-9.]+)$")
_SPEED_BLOCK: Final = 16384
_MAX_LINE: Final = 1 << 16
_UNPACK: Final = b"mount -t tmpfs work /mnt && tar -xf /dev/vdb -C /mnt"
_CONVERSATION: Final = (
    (b"debian login: ", b"root\n"),
    (b":~# ", b"dmesg -n 1; %b && bash /mnt/%b; poweroff -f\n" % (_UNPACK, DRIVER.encode())),
)
"""What the console asks, and what is typed then. The second disk is a tar archive."""


@dataclass(frozen=True)
class Program:
    """One program: how much it does at scale 1, and the Debian package that it comes from."""

    count: int
    package: str


PROGRAMS: Final[Mapping[str, Program]] = {
    "openssl-sha256": Program(1, "openssl"),
    "openssl-aes-128-gcm": Program(1, "openssl"),
    "openssl-rsa2048": Program(1, "openssl"),
    "gzip": Program(1, "gzip"),
    "xz": Program(1, "xz-utils"),
    "zstd": Program(2, "zstd"),
    "7z": Program(1, "p7zip-full"),
    "python-integers": Program(80_000, "python3"),
    "python-objects": Program(2_000_000, "python3"),
    "python-strings": Program(100_000, "python3"),
    "gcc": Program(1, "gcc"),
    "sqlite3": Program(1, "sqlite3"),
    "sysbench-cpu": Program(800, "sysbench"),
    "sysbench-memory": Program(2048, "sysbench"),
    "stress-ng-int64": Program(600, "stress-ng"),
    "stress-ng-double": Program(400, "stress-ng"),
    "stress-ng-matrix": Program(2500, "stress-ng"),
    "stress-ng-vm": Program(20_000, "stress-ng"),
    "stress-ng-pipe": Program(150_000, "stress-ng"),
    "stress-ng-fork": Program(500, "stress-ng"),
    "shell": Program(150, "dash"),
}
PACKAGES: Final = tuple(sorted({program.package for program in PROGRAMS.values()} | {"libc6-dev"}))


@dataclass
class ProgramRun(Run):
    """What one boot, or the native run, gave; ``guest_s`` is each program's time by the guest's own clock."""

    guest_s: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Transcript:
    """Turns the driver's lines into times, checksums and problems, each with the host's clock beside it."""

    def __init__(self, run: ProgramRun) -> None:
        self.run = run
        self.finished = False
        self._name = "the boot"
        self._begun_s = 0.0
        self._host_s = 0.0
        self._said: list[str] = []

    def read_line(self, line: bytes, now_s: float) -> None:
        """Take one line that arrived at ``now_s`` (seconds of a monotonic clock)."""
        if match := _EVENT.search(line):
            word, name, rest = ((group or b"").decode(errors="replace") for group in match.groups())
            if word == "begin":
                self._name, self._begun_s, self._said = name, now_s, []
            elif word == "worked":
                self._host_s = now_s - self._begun_s
            elif word == "said":
                self._said.append(rest)
            elif word == "end":
                self._end(name, rest.split())
            else:
                self.finished = True

    def give_up(self, reason: str) -> None:
        """Record that the run ended before its time."""
        self.run.problems.append(f"ended early, in {self._name}: {reason}")

    def _end(self, name: str, words: Sequence[str]) -> None:
        status, microseconds, checksum = words
        if status != "0":
            said = self._said[-1] if self._said else "nothing"
            self.run.problems.append(f"{name} ended with status {status} and said: {said}")
            return
        guest_s = int(microseconds) / 1e6
        self.run.guest_s[name] = guest_s
        self.run.checksums[name] = checksum
        self.run.times_ns.update(own_figures(name, self._said) or {name: self._host_s * 1e9})
        if abs(guest_s - self._host_s) > CLOCK_TOLERANCE * (1 + self._host_s):
            self.run.problems.append(
                f"{name} took {self._host_s:.2f} s, and {guest_s:.2f} s by its own clock"
            )


def own_figures(name: str, said: Sequence[str]) -> dict[str, float]:
    """Nanoseconds by row of a program with its own clock: 16 KiB, a signature made, a signature verified."""
    rows: dict[str, float] = {}
    for text in said:
        if (match := _THROUGHPUT.match(text)) and float(match[1]) > 0:
            rows[name] = _SPEED_BLOCK * 1e9 / float(match[1])
        elif (match := _SIGN_VERIFY.match(text)) and min(map(float, match.groups())) > 0:
            rows[f"{name}-sign"], rows[f"{name}-verify"] = (1e9 / float(rate) for rate in match.groups())
    return rows


def write_archive(path: Path, plan: Mapping[str, int], mib: int) -> None:
    """The driver, what to do (``plan`` gives counts by name) and what to do it with, as a tar archive."""
    made: dict[str, Callable[[], str]] = {
        "plan": lambda: "".join(f"{name} {count}\n" for name, count in plan.items()),
        "text": lambda: make_text(mib << 20),
        "unit.c": lambda: make_unit(40),
        "inserts.sql": lambda: make_inserts(60_000),
    }
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in (DRIVER, "loops.py"):
            add_file(archive, name, (FILES / name).read_bytes())
        for name, make in made.items():
            add_file(archive, name, make().encode())


def add_file(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file of this name and these bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mtime = 1  # gzip warns of 0, and fails
    archive.addfile(info, io.BytesIO(data))


def make_text(size: int) -> str:
    """``size`` bytes of words, few of them common and most rare, as in a text."""
    chance = random.Random(1)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 10))) for _ in range(20_000)]
    parts: list[str] = []
    length = 0
    while length < size:
        word = words[int(chance.random() ** 4 * len(words))]
        parts.append(word if len(parts) % 12 else f"{word}.\n")
        length += len(parts[-1]) + 1
    return " ".join(parts)[:size]


_FUNCTION: Final = """\
struct item{n} {{ int kind; long weight; double share; struct item{n} *next; }};
static long walk{n}(struct item{n} *item, int depth) {{
    long sum = {a};
    for (; item && depth > 0; item = item->next, depth--) {{
        switch ((item->kind ^ {b}) & 7) {{
        case 0: sum += item->weight * {c}; break;
        case 1: sum ^= item->weight >> (depth & 15); break;
        case 2: sum -= (long)(item->share * {d}.5); break;
        case 3: if (item->weight > {a}) sum = sum % {b} + depth; break;
        case 4: sum += walk{n}(item->next, depth / 2); break;
        default: sum = (sum << 1) | (sum < 0);
        }}
    }}
    return sum;
}}
double mix{n}(struct item{n} *items, const float *in, float *out, unsigned count) {{
    double total = 0;
    for (unsigned i = 0; i < count; i++) {{
        out[i] = in[i] * {c}.25f + in[(i * {d}u) % count];
        items[i].share = out[i] / ({a} + (double)i);
        items[i].next = i + 1 < count ? &items[i + 1] : 0;
        total += items[i].share;
    }}
    return total + walk{n}(items, {b} & 63);
}}
"""


def make_unit(functions: int) -> str:
    """A C file of ``functions`` pairs of functions that differ in their constants."""
    chance = random.Random(2)
    return "".join(
        _FUNCTION.format(n=n, **{name: chance.randint(3, 999) for name in "abcd"}) for n in range(functions)
    )


def make_inserts(rows: int) -> str:
    """SQL that makes a table with an index and inserts ``rows`` rows, each by a statement of its own."""
    chance = random.Random(3)
    lines = ["create table entries (id integer primary key, amount integer, note text);"]
    lines += ["create index by_note on entries (note);", "pragma synchronous = off;", "begin;"]
    for _ in range(rows):
        amount = chance.randint(0, 10**6)
        lines.append(
            f"insert into entries (amount, note) values ({amount}, 'note {chance.getrandbits(48):x}');"
        )
    return "\n".join([*lines, "commit;", ""])


@contextmanager
def time_limit(process: subprocess.Popen[bytes], limit_s: float) -> Iterator[None]:
    """Kill the process when the limit is over, and in any case at the end."""
    timer = threading.Timer(limit_s, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        process.kill()
        process.wait()


def run_command(
    command: Sequence[str], limit_s: float, conversation: Sequence[tuple[bytes, bytes]]
) -> ProgramRun:
    """Run one side to its end, or to the limit, answering what its console asks."""
    run = ProgramRun()
    transcript = Transcript(run)
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            env={**os.environ, "LC_ALL": "C"},
        )
        with time_limit(process, limit_s):
            converse(process, transcript, conversation)
            code = process.wait()
        if code != 0 or not transcript.finished:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines() or ["nothing"]
            transcript.give_up(f"exit code {code}, standard error said: {said[-1]}")
    return run


def converse(
    process: subprocess.Popen[bytes], transcript: Transcript, conversation: Sequence[tuple[bytes, bytes]]
) -> None:
    """Read the output to its end; at the first prompt the boot is over."""
    assert process.stdin is not None
    assert process.stdout is not None
    started_s = time.monotonic()
    waiting = list(conversation)
    rest = b""
    with process.stdin, process.stdout:
        while data := os.read(process.stdout.fileno(), 65536):
            now_s = time.monotonic()
            rest += data
            if waiting and waiting[0][0] in rest:
                transcript.run.times_ns.setdefault(BOOT, (now_s - started_s) * 1e9)
                with suppress(BrokenPipeError):
                    process.stdin.write(waiting.pop(0)[1])
                rest = b""
            *lines, rest = rest.split(b"\n")
            rest = rest[-_MAX_LINE:]
            for line in lines:
                transcript.read_line(line, now_s)


def unpack_disk(directory: Path) -> Path:
    """What is on the guest's disk, as a directory tree of the host."""
    tree = directory / "root"
    tree.mkdir()
    guest = prepare_guest("debian", packages=PACKAGES)
    try:
        command = ["debugfs", "-R", f"rdump / {tree}", str(guest.disks[0])]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    finally:
        guest.close()
    return tree


def native_command(tree: Path, archive: Path, driver: str = DRIVER) -> list[str]:
    """The driver in the tree, in namespaces of its own, which any user may have where the host allows it."""
    script = (
        'mount --rbind /dev "$1/dev"; mount --rbind /proc "$1/proc"; mount -t tmpfs work "$1/mnt";'
        f' tar -xf "$2" -C "$1/mnt" --no-same-owner; exec chroot "$1" /bin/bash /mnt/{driver}'
    )
    prefix = ["unshare", "--map-root-user", "--mount", "sh", "-ec"]
    return [*prefix, script, "sh", str(tree), str(archive)]


def native_obstacle() -> str:
    """Why the side ``native`` cannot run here; empty when it can."""
    for tool in ("debugfs", "unshare", "chroot"):
        if shutil.which(tool) is None:
            return f"this host has no {tool}"
    try_out = ["unshare", "--map-root-user", "--mount", "true"]
    allowed = subprocess.run(try_out, capture_output=True, check=False).returncode == 0
    return "" if allowed else "this host forbids user namespaces"


def run_guest(options: argparse.Namespace, side: str, archive: Path) -> ProgramRun:
    """Boot a fresh copy of the disk on one side and run the plan in it."""
    guest = prepare_guest("debian", packages=PACKAGES)
    try:
        make_command = sublet_command if side == "sublet" else qemu_command
        return run_command(make_command(options, guest, archive), options.limit, _CONVERSATION)
    finally:
        guest.close()


def sublet_command(options: argparse.Namespace, guest: PreparedGuest, archive: Path) -> list[str]:
    """``sublet run`` with the guest's disk and the archive."""
    run = [sys.executable, "-m", "sublet", "run", "--engine", options.engine, "--no-reboot"]
    boot = ["--kernel", str(guest.kernel), "--initrd", str(guest.initrd), "--append", guest.cmdline]
    disks = [
        "--disk",
        f"{guest.disks[0]},format=raw,cache=unsafe",
        "--disk",
        f"{archive},format=raw,readonly=on",
    ]
    return [*run, *boot, "--memory", f"{options.memory}M", *disks]


def qemu_command(options: argparse.Namespace, guest: PreparedGuest, archive: Path) -> list[str]:
    """QEMU with the same."""
    machine = ["-accel", "tcg", "-cpu", "max", "-m", str(options.memory), "-nodefaults", "-no-reboot"]
    boot = ["-kernel", str(guest.kernel), "-initrd", str(guest.initrd), "-append", guest.cmdline]
    disks = ["-drive", f"file={guest.disks[0]},format=raw,if=virtio,cache=unsafe"]
    disks += ["-drive", f"file={archive},format=raw,if=virtio,readonly=on"]
    return [options.qemu, *machine, "-display", "none", "-serial", "stdio", *boot, *disks]


def guest_versions() -> dict[str, str]:
    """Versions of the guest's packages; makes the guest if need be."""
    guest = prepare_guest("debian", report, packages=PACKAGES)
    guest.close()
    manifest = json.loads(guest.kernel.with_name("manifest.json").read_text())
    return dict(manifest["packages"])


def report(message: str, done: int = 0, total: int = 0) -> None:
    """Say on standard error what goes on."""
    if done in (0, total):
        print(message, file=sys.stderr, flush=True)


def choose_sides(options: argparse.Namespace) -> list[str]:
    """The sides that were asked for and can run here."""
    sides = list(options.sides)
    if "native" in sides and (obstacle := native_obstacle()):
        report(f"native is left out: {obstacle}")
        sides.remove("native")
    if "qemu" in sides and not options.qemu:
        report("QEMU is left out: there is no qemu-system-x86_64 on PATH")
        sides.remove("qemu")
    return sides


def make_runners(options: argparse.Namespace, directory: Path) -> dict[str, Callable[[], ProgramRun]]:
    """What runs each side once."""
    archive = directory / "work.tar"
    plan = {name: max(1, round(PROGRAMS[name].count * options.scale)) for name in options.programs}
    write_archive(archive, plan, options.mib)
    runners: dict[str, Callable[[], ProgramRun]] = {}
    for side in choose_sides(options):
        if side == "native":
            command = native_command(unpack_disk(directory), archive)
            runners[side] = partial(run_command, command, options.limit, ())
        else:
            runners[side] = partial(run_guest, options, side, archive)
    return runners


def run_rounds(rounds: int, runners: Mapping[str, Callable[[], ProgramRun]]) -> dict[str, list[ProgramRun]]:
    """Every round runs each side once, in turn."""
    runs: dict[str, list[ProgramRun]] = {side: [] for side in runners}
    for number in range(rounds):
        for side, run_once in runners.items():
            report(f"round {number + 1} of {rounds}: {side}")
            runs[side].append(run_once())
    return runs


Summary = Mapping[str, Mapping[str, Mapping[str, float]]]


def in_order(summary: Summary) -> Summary:
    """The boot first, then the rows of each program in the order of ``PROGRAMS``."""
    first = dict.fromkeys((BOOT, *(row for name in PROGRAMS for row in summary if row.startswith(name))))
    return {row: summary[row] for row in first if row in summary}


def geometric_mean(summary: Summary, over: str, under: str) -> float | None:
    """Of the ratios of medians, over the rows that both sides have."""
    ratios = [
        figures[over]["median_ns"] / figures[under]["median_ns"]
        for figures in summary.values()
        if over in figures and under in figures
    ]
    return statistics.geometric_mean(ratios) if ratios else None


def measure(options: argparse.Namespace, directory: Path) -> int:
    """All rounds; 0 when every program ended well on every side, with the same results."""
    versions = guest_versions()
    runs = run_rounds(options.rounds, make_runners(options, directory))
    plain: dict[str, list[Run]] = {side: list(side_runs) for side, side_runs in runs.items()}
    summary = in_order(summarize(plain))
    print_table(summary, list(runs))
    mean = geometric_mean(summary, "qemu", "sublet")
    if mean is not None:
        print(f"geometric mean of qemu/sublet: {mean:.2f}x")
    problems = [f"{side}: {text}" for side, all_of in runs.items() for run in all_of for text in run.problems]
    problems += [f"{name}: the sides disagree on the result" for name in wrong_checksums(plain)]
    for problem in problems:
        print(f"problem: {problem}")
    if options.json:
        result = {
            "options": {name: str(value) for name, value in vars(options).items()},
            "versions": {name: versions[name] for name in PACKAGES if name in versions},
            "rows": summary,
            "rounds": {side: [vars(run) for run in side_runs] for side, side_runs in runs.items()},
            "problems": problems,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if problems else 0


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of comma-separated names out of ``known``, which keeps the order of ``known``."""

    def parse(text: str) -> list[str]:
        wanted = text.split(",")
        for name in wanted:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return [name for name in known if name in wanted]

    return parse


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; without options it takes a few minutes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=1, help="how often each side runs (default 1)")
    add("--scale", type=float, default=1, help="how much work, about 0.3 s natively each (default 1)")
    add("--mib", type=int, default=4, help="MiB of the text to compress, 1 to 150 (default 4)")
    add(
        "--programs",
        type=_names(list(PROGRAMS)),
        default=list(PROGRAMS),
        help="comma-separated (default all)",
    )
    add("--sides", type=_names(SIDES), default=list(SIDES), help="comma-separated (default all)")
    add("--engine", default="translate", help="sublet's engine (default translate)")
    add("--memory", type=int, default=1024, help="MiB for each guest (default 1024)")
    add("--qemu", default=newest_qemu(), help="path of qemu-system-x86_64 (default: the newest)")
    add("--limit", type=float, default=900, help="seconds for one side of a round (default 900)")
    add("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args(arguments)
    if not 1 <= options.mib <= 150:
        parser.error("--mib is from 1 to 150: text, packed and unpacked lie in the guest's memory")
    return options


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
