"""The verdict on /dev/kvm, on made-up hosts and on this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sublet.core import Engine
from sublet.engine import kvm_probe, probe_engines
from sublet.engine.kvm_probe import STAGES, probe_kvm, probe_kvm_guest
from sublet.errors import HostRefused


def cpuinfo(tmp_path: Path, flags: str) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    return path


def test_no_device(tmp_path: Path) -> None:
    verdict = probe_kvm(device=tmp_path / "kvm")
    assert not verdict.usable
    assert "there is no" in verdict.reason
    assert verdict.remedy


def test_a_device_on_a_cpu_without_virtualization_is_not_believed(tmp_path: Path) -> None:
    verdict = probe_kvm(device=Path("/dev/null"), cpuinfo=cpuinfo(tmp_path, "fpu vme lm hypervisor"))
    assert not verdict.usable
    assert "neither the vmx nor the svm flag" in verdict.reason


def test_the_flag_alone_is_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(kvm_probe, "probe_kvm_guest", lambda: asked.append(1) or kvm_probe._unusable("no"))
    assert not probe_kvm(device=Path("/dev/null"), cpuinfo=cpuinfo(tmp_path, "fpu svm")).usable
    assert asked


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import time; print('open', flush=True); time.sleep(60)", "did not enter long mode"),
        ("import os; os.abort()", "did not start"),
        ("print('open'); print('long-mode'); raise SystemExit('a sentence')", "a sentence"),
    ],
)
def test_a_child_that_hangs_or_dies_is_a_verdict(
    program: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen
    monkeypatch.setattr(
        kvm_probe.subprocess, "Popen", lambda _, **options: start([sys.executable, "-c", program], **options)
    )
    verdict = probe_kvm_guest(time_limit_s=1.0)
    assert not verdict.usable
    assert reason in verdict.reason


def test_every_engine_gets_a_verdict_with_a_reason() -> None:
    verdicts = probe_engines()
    assert [one.name for one in verdicts] == ["kvm", "translate"]
    assert all(one.reason and not one.reason.endswith(".") for one in verdicts)


def test_the_probe_guest_passes_on_the_translator() -> None:
    command = [sys.executable, "-m", "sublet.engine.probe_guest", "translate"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == [name for name, _ in STAGES]


def test_an_emulated_kvm_is_found_out_by_the_guest_too() -> None:
    """Where the flags say that /dev/kvm is not hardware, the guest alone must come to that verdict."""
    try:
        Engine("kvm")
    except HostRefused as error:
        pytest.skip(f"KVM cannot be opened: {error}")
    assert probe_kvm_guest().usable == (kvm_probe._judge_cpu(Path("/proc/cpuinfo")) is None)
