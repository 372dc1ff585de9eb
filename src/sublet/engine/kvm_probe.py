"""Whether ``/dev/kvm`` can run a real kernel.

A device that opens is not enough: on some cloud machines it is a paravirtual module that carries
out each guest instruction in software, runs toy guests, and never gets through a kernel's
decompression. So the CPU's flags are read first, then ``probe_guest`` runs in a child process under
a time limit: a host whose KVM hangs must not hang us.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from sublet.engine.verdict import EngineVerdict

TIME_LIMIT_S: Final = 2.0
"""The probe guest takes about 20 ms where KVM is real."""

STAGES: Final = (
    ("open", "start"),
    ("long-mode", "enter long mode with paging"),
    ("mmio", "reach a device in memory"),
    ("hlt", "wake from HLT by an interrupt"),
    ("speed", "finish a loop of 50 million instructions"),
)
"""Name of each stage, and how to finish the sentence "the probe guest did not ..."."""

_DEVICE: Final = Path("/dev/kvm")
_CPUINFO: Final = Path("/proc/cpuinfo")


def probe_kvm(*, device: Path = _DEVICE, cpuinfo: Path = _CPUINFO) -> EngineVerdict:
    """Judge the KVM engine: the device, the CPU's flags, then a guest. At most about 3 seconds."""
    return _judge_device(device) or _judge_cpu(cpuinfo) or probe_kvm_guest()


def _unusable(reason: str, remedy: str = "") -> EngineVerdict:
    return EngineVerdict("kvm", False, reason, remedy)


def _judge_device(device: Path) -> EngineVerdict | None:
    if not device.exists():
        return _unusable(
            f"there is no {device}", "Load kvm_intel or kvm_amd, or enable nested virtualization."
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return _unusable(
            f"{device} is not readable and writable by this user", "Join the group that owns it."
        )
    return None


def _judge_cpu(cpuinfo: Path) -> EngineVerdict | None:
    """The hardware that KVM needs is one CPU flag; without it, something else answers on the device."""
    flags: set[str] = set()
    with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == "flags":
                flags.update(value.split())
                break
    if flags & {"vmx", "svm"}:
        return None
    return _unusable(
        "the CPU has neither the vmx nor the svm flag, so /dev/kvm is not hardware virtualization"
        " (on cloud machines, PVM) and does not run a real kernel"
    )


def probe_kvm_guest(time_limit_s: float = TIME_LIMIT_S) -> EngineVerdict:
    """Run the probe guest on KVM in a child process and judge by how far it got."""
    command = [sys.executable, "-P", "-m", "sublet.engine.probe_guest", "kvm"]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, complaint = child.communicate(timeout=time_limit_s)
    except subprocess.TimeoutExpired:
        child.kill()
        output = _rest_of(child)
        return _unusable(f"{_missing_stage(output)} within {time_limit_s:g} s: each instruction is emulated")
    if child.returncode != 0:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["the probe guest died"]
        return _unusable(f"{_missing_stage(output)}: {last[0]}")
    return EngineVerdict("kvm", True, "hardware virtualization; the probe guest ran")


def _rest_of(child: subprocess.Popen[bytes]) -> bytes:
    """What a killed child had written; nothing if it hangs in the kernel and cannot even die."""
    try:
        return child.communicate(timeout=1.0)[0]
    except subprocess.TimeoutExpired:
        return b""


def _missing_stage(output: bytes) -> str:
    done = set(output.decode(errors="replace").split())
    for name, description in STAGES:
        if name not in done:
            return f"the probe guest did not {description}"
    return "the probe guest did not finish"
