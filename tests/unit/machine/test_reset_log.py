"""Who resets a machine, and where its processors were."""

from __future__ import annotations

from pathlib import Path

import pytest

from sublet.engine import open_engine
from sublet.machine import MachineConfig
from sublet.machine.control import Control, Request
from sublet.machine.nonvolatile import Nonvolatile
from sublet.machine.power_cycle import PowerCycle

ROM_SIZE = 0x20000
RESET_VECTOR = ROM_SIZE - 16
LOAD_EMPTY_IDT_AND_FAULT = bytes.fromhex("2e0f011ef8ff 0f0b 0000000000000000")
"""``lidt cs:[0xfff8]; ud2``, with zeroes there."""


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    """A machine whose firmware takes a triple fault."""
    rom = bytearray(ROM_SIZE)
    rom[RESET_VECTOR:] = LOAD_EMPTY_IDT_AND_FAULT
    path = tmp_path / "rom"
    path.write_bytes(rom)
    return MachineConfig(machine="pc", firmware=path, memory_mib=16, cpus=2)


def run_once(config: MachineConfig) -> Request | None:
    control = Control()
    cycle = PowerCycle(open_engine("translate"), config, lambda data: None, control, Nonvolatile(config))
    cycle.start()
    message = control.wait(30)
    cycle.close()
    return None if message is None else message.request


def test_a_triple_fault_is_explained(
    config: MachineConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUBLET_RESET_LOG", "1")
    assert run_once(config) is Request.TRIPLE_FAULT
    first, *lines = capfd.readouterr().err.splitlines()
    assert first == "sublet: vcpu0: the guest caused a triple fault"
    assert "rip=0xfff6" in lines[0]
    assert "idt=0x0:0x0" in lines[1]
    assert any(line.startswith("sublet: vcpu1:") and "waiting_for_startup=yes" in line for line in lines)


def test_nobody_is_told_who_does_not_ask(config: MachineConfig, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_once(config) is Request.TRIPLE_FAULT
    assert not capfd.readouterr().err
