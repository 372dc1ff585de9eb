"""The same jobs in a ``debian`` guest of 1, 2 and 8 vCPUs, under sublet's translator and QEMU's TCG.

``compute`` runs a C program several times, ``compile`` gcc; as many at once as the guest has vCPUs. So the
time of one vCPU over that of two is how much two are worth, and that of two over that of eight, on a host of
two processors, the share of work that is left where vCPUs outnumber processors. The side ``native`` does the
jobs on as many of the host's own processors, with the binaries of the guest's disk: what the host itself
gains by its second.

    python benchmarks/smp.py --rounds 3 --json result.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import programs
from guest_benchmark import Run, newest_qemu, print_table, summarize, wrong_checksums

from sublet.errors import SubletError
from sublet.guest import prepare_guest

FILES: Final = Path(__file__).parent / "guest"
DRIVER: Final = "parallel.bash"
KINDS: Final = ("compute", "compile")
SIDES: Final = ("sublet", "qemu", "native")
_UNPACK: Final = b"mount -t tmpfs work /mnt && tar -xf /dev/vdb -C /mnt"
_CONVERSATION: Final = (
    (b"debian login: ", b"root\n"),
    (b":~# ", b"dmesg -n 1; %b && bash /mnt/%b; poweroff -f\n" % (_UNPACK, DRIVER.encode())),
)


def write_archive(path: Path, kinds: Sequence[str], jobs: int) -> None:
    """The driver, its plan, and what it works on, as a tar archive."""
    program = path.with_name("compute")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-static", "-o", str(program), str(FILES / "compute.c")], check=True)
    plan = f'JOBS={jobs}\nNAMES="{" ".join(kinds)}"\n'
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(FILES / DRIVER, DRIVER)
        archive.add(program, "compute")
        programs.add_file(archive, "plan", plan.encode())
        programs.add_file(archive, "unit.c", programs.make_unit(40).encode())


def run_guest(options: argparse.Namespace, side: str, cpus: int, archive: Path) -> programs.ProgramRun:
    """Boot a fresh copy of the disk with ``cpus`` vCPUs on one side and do the jobs."""
    guest = prepare_guest("debian", packages=programs.PACKAGES)
    try:
        if side == "sublet":
            command = [*programs.sublet_command(options, guest, archive), "--cpus", str(cpus)]
        else:
            command = [*programs.qemu_command(options, guest, archive), "-smp", str(cpus)]
        return programs.run_command(command, options.limit, _CONVERSATION)
    finally:
        guest.close()


def run_native(options: argparse.Namespace, cpus: int, tree: Path, archive: Path) -> programs.ProgramRun:
    """Do the jobs on ``cpus`` of the host's processors."""
    processors = sorted(os.sched_getaffinity(0))[:cpus]
    command = ["taskset", "-c", ",".join(map(str, processors))]
    command += programs.native_command(tree, archive, DRIVER)
    return programs.run_command(command, options.limit, ())


Summary = Mapping[str, Mapping[str, Mapping[str, float]]]


def speedups(summary: Summary, cpus: Sequence[int]) -> dict[str, float]:
    """Median time of each number of vCPUs over that of the next, by row and side."""
    found = {}
    for row in KINDS:
        figures = summary.get(row, {})
        for side in SIDES:
            for few, many in itertools.pairwise(cpus):
                names = f"{side} {few}", f"{side} {many}"
                if all(name in figures for name in names):
                    before, after = (figures[name]["median_ns"] for name in names)
                    found[f"{row}, {side}: {few} to {many} vCPUs"] = before / after
    return found


def measure(options: argparse.Namespace, directory: Path) -> int:
    """All rounds; 0 when every job ended well, with the same results."""
    archive = directory / "work.tar"
    write_archive(archive, options.kinds, options.jobs)
    sides = programs.choose_sides(options)
    tree = programs.unpack_disk(directory) if "native" in sides else directory
    processors = len(os.sched_getaffinity(0))
    runs: dict[str, list[programs.ProgramRun]] = {}
    for number in range(options.rounds):
        for side in sides:
            for cpus in options.cpus:
                if side == "native" and cpus > processors:
                    continue
                programs.report(f"round {number + 1} of {options.rounds}: {side}, {cpus} vCPUs")
                if side == "native":
                    run = run_native(options, cpus, tree, archive)
                else:
                    run = run_guest(options, side, cpus, archive)
                runs.setdefault(f"{side} {cpus}", []).append(run)
    plain: dict[str, list[Run]] = {name: list(of_name) for name, of_name in runs.items()}
    summary = summarize(plain)
    print_table(summary, list(runs))
    gains = speedups(summary, options.cpus)
    for name, gain in gains.items():
        print(f"{name}: {gain:.2f}x")
    problems = [
        f"{name}: {text}" for name, of_name in runs.items() for run in of_name for text in run.problems
    ]
    problems += [f"{name}: the sides disagree on the result" for name in wrong_checksums(plain)]
    for problem in problems:
        print(f"problem: {problem}")
    if options.json:
        result = {"rows": summary, "speedups": gains, "problems": problems, "load": os.getloadavg()}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if problems else 0


def _list(text: str) -> list[str]:
    return text.split(",")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; without options it takes about ten minutes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=1, help="how often each guest runs (default 1)")
    add("--jobs", type=int, default=8, help="jobs of each kind (default 8)")
    add("--kinds", type=_list, default=list(KINDS), help="comma-separated (default compute,compile)")
    add("--cpus", type=lambda text: [int(word) for word in text.split(",")], default=[1, 2, 8])
    add("--sides", type=_list, default=list(SIDES), help="comma-separated (default sublet,qemu,native)")
    add("--engine", default="translate", help="sublet's engine (default translate)")
    add("--memory", type=int, default=1024, help="MiB for each guest (default 1024)")
    add("--qemu", default=newest_qemu(), help="path of qemu-system-x86_64 (default: the newest)")
    add("--limit", type=float, default=900, help="seconds for one guest (default 900)")
    add("--json", type=Path, help="write every figure to this file")
    return parser.parse_args(arguments)


def main() -> int:
    """Entry point."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            return measure(parse_options(), Path(directory))
        except SubletError as error:
            print(f"error: {error.message}. {error.remedy}".strip(), file=sys.stderr)
            return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
