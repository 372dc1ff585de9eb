"""House rules that no linter knows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
FORBIDDEN_WORDS = re.compile(
    r"\b(claude|anthropic|chatgpt|openai|copilot|language model|llm)\b", re.IGNORECASE
)
MARKERS = re.compile(r"\b(FIXME|XXX|HACK)\b|\bTODO\b(?!\(#)")
TEXT = {".py", ".pyi", ".rs", ".md", ".toml", ".s", ".c", ".sh", ".yml", ""}


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix in TEXT and path != Path(__file__)]


def lines_that_match(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in paths
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_file_is_a_drawer() -> None:
    assert [path for path in tracked() if path.stem in FORBIDDEN_NAMES] == []


def test_no_forbidden_words() -> None:
    assert lines_that_match(FORBIDDEN_WORDS, tracked()) == []


def test_open_ends_name_their_issue() -> None:
    sources = [path for path in tracked() if path.suffix in {".py", ".rs"}]
    assert lines_that_match(MARKERS, sources) == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        path
        for path in (ROOT / "src").rglob("*.py")
        if not path.read_text(encoding="utf-8").lstrip().startswith(('"""', 'r"""'))
    ]
    assert silent == []


def test_architecture_is_one_page() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_imports_run_downward() -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]


def test_only_the_core_package_imports_the_extension() -> None:
    pattern = re.compile(r"^\s*(from|import) .*\b_native\b")
    sources = [path for path in (ROOT / "src").rglob("*.py") if path.parent.name != "core"]
    assert lines_that_match(pattern, sources) == []


def test_commits_of_dependencies_are_locked() -> None:
    assert (ROOT / "Cargo.lock").is_file()
