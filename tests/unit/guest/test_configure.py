"""Configuring a disk in a machine: the disk changes only when the machine says that it finished."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sublet.guest import configure
from sublet.guest.store import silent


def machine(code: str) -> object:
    """Stands for ``sublet run``: a program that gets the disk's path."""
    return lambda kernel, initrd, disk: [sys.executable, "-c", code, str(disk)]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"unpacked")
    return path


def run(disk: Path) -> bool:
    return configure.configure_in_machine(disk, disk, disk, silent)


def test_finished_machine_changes_the_disk(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; open(sys.argv[1], 'wb').write(b'configured'); print('sublet: configured')"
    monkeypatch.setattr(configure, "_command", machine(code))
    assert run(disk)
    assert disk.read_bytes() == b"configured"


@pytest.mark.parametrize("end", ["pass", "print('sublet: configured'); sys.exit(81)", "sys.exit(3)"])
def test_any_other_end_leaves_it(disk: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    code = f"import sys; open(sys.argv[1], 'wb').write(b'half'); {end}"
    monkeypatch.setattr(configure, "_command", machine(code))
    assert not run(disk)
    assert disk.read_bytes() == b"unpacked"
    assert list(disk.parent.iterdir()) == [disk]


def test_progress_names_packages(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(configure, "_command", machine("print('Setting up bash (5.2) ...')"))
    configure.configure_in_machine(disk, disk, disk, lambda message, done=0, total=0: told.append(message))
    assert told == ["configuring bash in a machine"]
