"""kvm-unit-tests under QEMU's TCG, under the translator, and under KVM where it runs, side by side.

The tests are not part of this repository. Build both widths of https://gitlab.com/kvm-unit-tests outside
it, then run by hand (about twenty minutes; `s3` and `hpet_read_test` need seabios, grub-pc-bin and xorriso):

    (cd DIRECTORY/x86_64 && ./configure --arch=x86_64 && make -k)
    (cd DIRECTORY/i386 && ./configure --arch=i386 --processor=i386 && make -k)
    python tests/judges/kvm_unit_tests.py DIRECTORY --json result.json
    python tests/judges/kvm_unit_tests.py DIRECTORY --only realmode --engine translate --verbose

A row is to pass under ``translate`` when it passes under TCG; each sub-test that passes under TCG and not
here is named. The exit status is 1 when there is one.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

ENGINES: Final = ("tcg", "translate", "kvm")
_PCID: Final = (1, 2, 1 << 17)
_INVPCID: Final = (7, 1, 1 << 10)
_X2APIC: Final = (1, 2, 1 << 21)
_LINE: Final = re.compile(r"^(PASS|FAIL|SKIP|XPASS|XFAIL): (.*?)\r?$", re.MULTILINE)
_EXIT_PASS, _EXIT_SKIP = 0, 77
_TSC_DEADLINE: Final = "qemu64,+x2apic,+tsc-deadline"


@dataclass(frozen=True)
class Row:
    """One line of the table: a kernel with its arguments and its processor."""

    name: str
    kernel: str
    arch: str = "x86_64"
    cpus: int = 1
    arguments: str = ""
    cpu: str = "max"
    hide: Sequence[tuple[int, int, int]] = ()
    """CPUID bits that are hidden from the guest on our side, as ``cpu`` does on QEMU's."""
    limit_s: int = 30
    whole: bool = False
    """Ours is the machine `pc`, started by GRUB, in place of the judge's small one."""
    absent: str = ""
    """What the test is of, where our machine does not have it: then nothing is asked of it."""


def _both(name: str, kernel: str = "", **options: object) -> list[Row]:
    return [Row(name, kernel or name, arch, **options) for arch in ("x86_64", "i386")]  # type: ignore[arg-type]


ROWS: Final = [
    *_both("realmode"),
    *_both("setjmp"),
    *_both("sieve", limit_s=100),
    *_both("emulator"),
    *_both("eventinj"),
    *_both("smap"),
    *_both("umip"),
    *_both("la57"),
    *_both("tsc"),
    *_both("tsc_adjust"),
    *_both("msr", cpu="max,vendor=GenuineIntel"),
    Row("msr64", "msr", cpu="qemu64,vendor=GenuineIntel"),
    *_both("hypercall"),
    *_both("s3", whole=True, limit_s=60),
    *_both("smptest", cpus=2),
    *_both("smptest3", "smptest", cpus=3),
    *_both("hpet_read_test", whole=True, limit_s=60),
    *_both("tsx-ctrl", absent="TSX"),
    *_both("vmexit_cpuid", "vmexit", arguments="cpuid"),
    *_both("vmexit_vmcall", "vmexit", arguments="vmcall"),
    *_both("vmexit_mov_from_cr8", "vmexit", arguments="mov_from_cr8"),
    *_both("vmexit_mov_to_cr8", "vmexit", arguments="mov_to_cr8"),
    *_both("vmexit_ple_round_robin", "vmexit", arguments="ple_round_robin"),
    *_both("vmexit_tscdeadline", "vmexit", arguments="tscdeadline", cpu=_TSC_DEADLINE),
    *_both("vmexit_tscdeadline_immed", "vmexit", arguments="tscdeadline_immed", cpu=_TSC_DEADLINE),
    *_both("vmexit_inl_pmtimer", "vmexit", arguments="inl_from_pmtimer"),
    *_both("vmexit_ipi", "vmexit", cpus=2, arguments="ipi"),
    *_both("vmexit_ipi_halt", "vmexit", cpus=2, arguments="ipi_halt"),
    *_both("vmexit_cr0_wp", "vmexit", cpus=2, arguments="toggle_cr0_wp"),
    *_both("vmexit_cr4_pge", "vmexit", cpus=2, arguments="toggle_cr4_pge"),
    Row("taskswitch", "taskswitch", "i386"),
    Row("taskswitch2", "taskswitch2", "i386"),
    Row("cmpxchg8b", "cmpxchg8b", "i386"),
    Row("x2apic", "apic", cpus=2, cpu=_TSC_DEADLINE, limit_s=120),
    Row("xapic", "apic", cpus=2, cpu="qemu64,-x2apic,+tsc-deadline", hide=(_X2APIC,), limit_s=120),
    Row("ioapic", "ioapic", cpus=4, cpu="qemu64,+x2apic"),
    Row("access", "access_test", limit_s=100),
    Row("memory", "memory"),
    Row("idt_test", "idt_test"),
    Row("xsave", "xsave"),
    Row("rmap_chain", "rmap_chain"),
    Row("syscall", "syscall", cpu="Opteron_G1,vendor=AuthenticAMD"),
    Row("pcid-enabled", "pcid", cpu="qemu64,+pcid,+invpcid"),
    Row("pcid-disabled", "pcid", cpu="qemu64,-pcid,-invpcid", hide=(_PCID, _INVPCID)),
    Row("pcid-asymmetric", "pcid", cpu="qemu64,-pcid,+invpcid", hide=(_PCID,)),
    Row("pku", "pku", absent="PKU"),
    Row("pks", "pks", absent="PKS"),
    Row("rdpru", "rdpru"),
    Row("debug", "debug"),
    Row("cet", "cet", cpus=2, absent="CET"),
    Row("lam", "lam"),
    Row("tscdeadline_latency", "tscdeadline_latency"),
]


@dataclass
class Result:
    """What one engine made of one row."""

    verdict: str
    """pass, fail, skip, or why there was no verdict."""
    sub_tests: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    output: str = ""

    def count(self, verdict: str) -> int:
        """How many sub-tests had this verdict."""
        return sum(value == verdict for value in self.sub_tests.values())

    def brief(self) -> str:
        """For the table."""
        counts = f"{self.count('PASS')}/{len(self.sub_tests)}" if self.sub_tests else ""
        return f"{self.verdict} {counts}".strip()


def sub_tests(output: str) -> dict[str, str]:
    """Verdict by sub-test; a name that comes again gets a number."""
    found: dict[str, str] = {}
    for verdict, name in _LINE.findall(output):
        key, again = name, 2
        while key in found:
            key, again = f"{name} #{again}", again + 1
        found[key] = verdict
    return found


def _verdict(code: int | None, why: str) -> str:
    if code is None:
        return why
    return {_EXIT_PASS: "pass", _EXIT_SKIP: "skip"}.get(code, "fail")


def run_tcg(row: Row, kernel: Path) -> Result:
    """Run under QEMU; its exit device turns code N into exit status 2N + 1."""
    command = [
        *("qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-cpu", row.cpu, "-smp", str(row.cpus)),
        *("-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-m", "128"),
        *("-device", "pc-testdev", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4"),
        *("-kernel", str(kernel), "-append", row.arguments),
    ]
    start = time.monotonic()
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=row.limit_s)
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode(errors="replace")
        return Result("timeout", sub_tests(output), row.limit_s, output)
    output = done.stdout.decode(errors="replace")
    code = done.returncode >> 1 if done.returncode & 1 else None
    return Result(_verdict(code, "reset"), sub_tests(output), time.monotonic() - start, output)


def run_ours(engine: str, row: Row, kernel: Path) -> Result:
    """Run on one of our engines, in a process of its own."""
    command = [sys.executable, __file__, "--child", engine, row.name, row.arch, str(kernel), str(row.limit_s)]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=row.limit_s + 15
        )
    except subprocess.TimeoutExpired:
        return Result("hang", {}, row.limit_s + 15)
    if done.returncode != 0:
        return Result("crash", {}, time.monotonic() - start, done.stderr.decode(errors="replace"))
    answer = json.loads(done.stdout)
    output = answer["output"]
    return Result(_verdict(answer["code"], answer["why"]), sub_tests(output), answer["seconds"], output)


def child(engine: str, name: str, arch: str, kernel: str, limit: str) -> int:
    """Run one row in this process; the result goes to standard output as JSON."""
    from multiboot_machine import MultibootMachine, Outcome
    from whole_machine import run_on_pc

    from sublet.errors import SubletError

    row = next(row for row in ROWS if (row.name, row.arch) == (name, arch))
    limit_s = int(limit)
    try:
        if row.whole:
            json.dump(run_on_pc(engine, row.cpus, Path(kernel), row.arguments, limit_s), sys.stdout)
            return 0
        machine = MultibootMachine(engine, row.cpus, row.hide)
        machine.load(Path(kernel), row.arguments)
        outcome = machine.run(limit_s)
    except SubletError as error:
        outcome = Outcome(None, f"not run: {error.message}", "", 0.0)
    json.dump(asdict(outcome), sys.stdout)
    return 0


def lost(reference: Result, ours: Result) -> list[str]:
    """Sub-tests that pass under the reference and not here."""
    return [
        name
        for name, verdict in reference.sub_tests.items()
        if verdict == "PASS" and ours.sub_tests.get(name, "missing") not in ("PASS", "XPASS")
    ]


def judge(row: Row, results: dict[str, Result]) -> bool:
    """Whether ``translate`` does as well as TCG on the row."""
    ours, reference = results.get("translate"), results.get("tcg")
    if ours is None or reference is None or row.absent:
        return True
    return reference.verdict != "pass" or ours.verdict == "pass"


def _select(arguments: argparse.Namespace) -> list[Row]:
    return [
        replace(row, limit_s=row.limit_s * arguments.patience)
        for row in ROWS
        if (not arguments.only or row.name in arguments.only)
        and (not arguments.arch or row.arch == arguments.arch)
    ]


def _run_row(row: Row, directory: Path, engines: Sequence[str]) -> dict[str, Result]:
    kernel = directory / row.arch / "x86" / f"{row.kernel}.flat"
    if not kernel.exists():
        return {}
    return {
        engine: run_tcg(row, kernel) if engine == "tcg" else run_ours(engine, row, kernel)
        for engine in engines
    }


def _show(row: Row, results: dict[str, Result], verbose: bool) -> None:
    columns = " | ".join(f"{results[engine].brief():<14}" for engine in results)
    mark = " " if judge(row, results) else "!"
    print(f"{mark} {row.name:<20} | {row.arch:<6} | {columns}", flush=True)
    ours, reference = results.get("translate"), results.get("tcg")
    if ours and reference:
        for name in lost(reference, ours)[:20]:
            print(f"      lost: {name}", flush=True)
    if verbose:
        for engine, result in results.items():
            print(f"--- {engine} {result.seconds:.1f} s\n{result.output}")


def main() -> int:
    """Run the table."""
    if sys.argv[1:2] == ["--child"]:
        return child(*sys.argv[2:7])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory", type=Path, help="with x86_64/ and i386/, both built")
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--arch", choices=("x86_64", "i386"))
    parser.add_argument("--engine", nargs="*", choices=ENGINES, default=ENGINES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--patience", type=int, default=1, help="times the limits, on a busy host")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    behind, table = 0, []
    for row in _select(arguments):
        results = _run_row(row, arguments.directory, arguments.engine)
        if results:
            _show(row, results, arguments.verbose)
            behind += not judge(row, results)
            table.append({"row": asdict(row), "results": {name: asdict(r) for name, r in results.items()}})
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1))
    return 1 if behind else 0


if __name__ == "__main__":
    sys.exit(main())
