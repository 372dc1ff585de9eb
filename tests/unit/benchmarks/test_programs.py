"""What the benchmark of whole programs makes of its driver's lines, and of a program that fails."""

from __future__ import annotations

import importlib
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
DIGEST = "e3b0c44298fc1c149afbf4c8996fb924"


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, imported as its own directory sees it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("programs")
    for name in ("programs", "guest_benchmark", "installed"):
        sys.modules.pop(name, None)


def read(programs: Any, *lines: tuple[float, bytes]) -> Any:
    transcript = programs.Transcript(programs.ProgramRun())
    for now_s, line in lines:
        transcript.read_line(line, now_s)
    return transcript


def ending(name: bytes, status: int, microseconds: int) -> bytes:
    return b"programs: end %b %d %d %b\r" % (name, status, microseconds, DIGEST.encode())


def test_a_program_counts_by_the_hosts_clock(programs: Any) -> None:
    lines = [(1.0, b"\x1b[?2004l\rprograms: begin gzip\r"), (3.0, b"programs: worked gzip\r")]
    transcript = read(programs, *lines, (4.0, ending(b"gzip", 0, 2_010_000)), (4.1, b"programs: finished\r"))
    assert transcript.finished
    assert transcript.run.times_ns == {"gzip": 2e9}
    assert transcript.run.guest_s == {"gzip": 2.01}
    assert transcript.run.checksums == {"gzip": DIGEST}
    assert transcript.run.problems == []


def test_openssl_counts_by_its_own(programs: Any) -> None:
    said = ["+F:25:sha256:1638400000.00", "+F2:2:2048:4000.000000:50000.000000"]
    assert programs.own_figures("sha256", said[:1]) == {"sha256": 10_000.0}
    assert programs.own_figures("rsa", said[1:]) == {"rsa-sign": 250_000.0, "rsa-verify": 20_000.0}
    assert programs.own_figures("sha256", ["+F:25:sha256:0.00"]) == {}


def test_a_failed_program_has_no_row(programs: Any) -> None:
    lines = [
        (1.0, b"programs: begin gcc"),
        (2.0, b"programs: worked gcc"),
        (2.0, b"programs: said gcc no space"),
    ]
    run = read(programs, *lines, (2.0, ending(b"gcc", 1, 1_000_000))).run
    assert run.times_ns == {}
    assert run.problems == ["gcc ended with status 1 and said: no space"]


def test_clocks_that_disagree_are_a_problem(programs: Any) -> None:
    lines = [(1.0, b"programs: begin gcc"), (3.0, b"programs: worked gcc")]
    (problem,) = read(programs, *lines, (3.0, ending(b"gcc", 0, 1_000_000))).run.problems
    assert "by its own clock" in problem


def test_the_archive_has_what_the_driver_reads(programs: Any, tmp_path: Path) -> None:
    programs.write_archive(tmp_path / "work.tar", {"gzip": 2, "gcc": 1}, 1)
    with tarfile.open(tmp_path / "work.tar") as archive:
        sizes = {member.name: member.size for member in archive}
        plan = archive.extractfile("plan")
        assert plan is not None
        assert plan.read() == b"gzip 2\ngcc 1\n"
    assert sizes["text"] == 1 << 20
    assert set(sizes) == {"programs.bash", "loops.py", "plan", "text", "unit.c", "inserts.sql"}


def test_the_driver_knows_every_program(programs: Any) -> None:
    driver = (BENCHMARKS / "guest" / programs.DRIVER).read_text()
    assert [
        n for n in programs.PROGRAMS if f"\nwork-{n}()" not in driver or f"\ncheck-{n}()" not in driver
    ] == []


def test_an_early_end_is_named(programs: Any) -> None:
    run = programs.run_command(["sh", "-c", "echo programs: begin xz; echo broken >&2; exit 3"], 30, ())
    assert run.problems == ["ended early, in xz: exit code 3, standard error said: broken"]


def test_prompts_are_answered_in_turn(programs: Any) -> None:
    script = (
        "printf 'login: '; read a; printf '# '; read b; echo programs: begin $a$b; echo programs: finished"
    )
    run = programs.run_command(["sh", "-c", script], 30, ((b"login: ", b"x\n"), (b"# ", b"y\n")))
    assert run.problems == []
    assert list(run.times_ns) == [programs.BOOT]
