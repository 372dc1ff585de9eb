"""The ladder of fixtures: engine → VM → guest at its first instruction. All of it on each engine."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from tests.conformance.engine.guests import Build, Guest

from sublet.core import Engine
from sublet.errors import SubletError

ENGINES = ("translate", "kvm")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "needs_hardware(reason): fails where KVM emulates each instruction, for this reason"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A guest that cannot even be kicked ends the session instead of hanging it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(120, method="thread"))


@cache
def _is_emulated() -> bool:
    """Whether KVM has no hardware below it: it then carries out each instruction in software."""
    words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    return not words & {"vmx", "svm"}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn; KVM where its device opens."""
    try:
        return Engine(request.param)
    except SubletError as error:
        if request.param != "kvm":
            raise
        pytest.skip(f"kvm: {error.message}")


@pytest.fixture
def emulated(engine: Engine, request: pytest.FixtureRequest) -> bool:
    """Whether this is a KVM that emulates each instruction, and not all of them rightly."""
    emulated = engine.name == "kvm" and _is_emulated()
    known = request.node.get_closest_marker("needs_hardware")
    if emulated and known is not None:
        reason = f"this host's KVM emulates: {known.args[0]}"
        request.applymarker(pytest.mark.xfail(reason=reason, run=known.kwargs.get("run", True)))
    return emulated


@pytest.fixture
def vm(engine: Engine, emulated: bool) -> Guest:
    """A VM with RAM and one vCPU at reset state, no code."""
    return Guest(engine, emulated=emulated)


@pytest.fixture
def irqchip_vm(engine: Engine, emulated: bool) -> Guest:
    """The same with interrupt controllers in the core."""
    return Guest(engine, irqchip=True, emulated=emulated)


@pytest.fixture
def built(vm: Guest) -> Build:
    """A guest in 64-bit mode with the code given, at its first instruction."""
    return vm.load


@pytest.fixture
def built_with_irqchip(irqchip_vm: Guest) -> Build:
    """The same with interrupt controllers in the core."""
    return irqchip_vm.load
