"""What a machine keeps over resets and runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sublet.machine import MachineConfig
from sublet.machine.nonvolatile import Nonvolatile

TEMPLATE = b"\xff" * 64


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "sublet" / "machines"


def test_a_named_machine_finds_its_variables_again(state: Path) -> None:
    config = MachineConfig(name="web", machine="q35")
    first = Nonvolatile(config)
    assert first.variables(TEMPLATE) == TEMPLATE
    first.keep_variables(b"\x01" * 64)
    assert Nonvolatile(config).variables(TEMPLATE) == b"\x01" * 64
    assert [path.name for path in (state / "web").iterdir()] == ["uefi-variables.fd"]


def test_a_machine_without_a_name_keeps_them_over_resets_alone(state: Path) -> None:
    config = MachineConfig(machine="q35")
    first = Nonvolatile(config)
    first.keep_variables(b"\x01" * 64)
    assert first.variables(TEMPLATE) == b"\x01" * 64
    assert Nonvolatile(config).variables(TEMPLATE) == TEMPLATE
    assert not state.exists()


def test_variables_of_another_firmware_are_not_taken() -> None:
    config = MachineConfig(name="web", machine="q35")
    Nonvolatile(config).keep_variables(b"\x01" * 32)
    assert Nonvolatile(config).variables(TEMPLATE) == TEMPLATE


def test_cmos_bytes_of_the_clock_and_of_memory_sizes_are_not_kept() -> None:
    kept = Nonvolatile(MachineConfig(machine="pc"))
    assert kept.cmos() == []
    kept.keep_cmos(bytes(range(128)))
    assert dict(kept.cmos())[0x0F] == 0x0F
    assert not {0x00, 0x0D, 0x17, 0x2E, 0x34} & dict(kept.cmos()).keys()
