"""Which engine runs a guest: the one asked for, or the best that works here."""

from __future__ import annotations

from typing import Final, Literal, get_args

from sublet.core import Engine
from sublet.engine.verdict import EngineVerdict
from sublet.errors import HostRefused, SubletError, UsageError

EngineChoice = Literal["auto", "kvm", "translate"]
ENGINE_CHOICES: Final[tuple[str, ...]] = get_args(EngineChoice)


def open_engine(choice: EngineChoice) -> Engine:
    """Open an engine.

    Args:
        choice: ``kvm`` and ``translate`` are opened without a probe, so that what works of a poor
            ``/dev/kvm`` can be used; ``auto`` takes KVM only after the probe guest has run on it.

    Raises:
        HostRefused: The host cannot provide the engine.
        UsageError: There is no such engine.
    """
    if choice not in ENGINE_CHOICES:
        raise UsageError(
            f"no engine is called {choice!r}", remedy=f"Choose one of {', '.join(ENGINE_CHOICES)}."
        )
    if choice != "auto":
        return Engine(choice)
    from sublet.engine.kvm_probe import probe_kvm

    return Engine("kvm" if probe_kvm().usable else "translate")


def probe_engines() -> list[EngineVerdict]:
    """Judge every engine on this host, the preferred one first. Takes at most a few seconds."""
    from sublet.engine.kvm_probe import probe_kvm

    return [probe_kvm(), _probe_translate()]


def _probe_translate() -> EngineVerdict:
    try:
        Engine("translate").create_vm()
    except HostRefused as error:
        return EngineVerdict("translate", False, error.message, error.remedy)
    except SubletError as error:
        return EngineVerdict("translate", False, f"internal error: {error.message}")
    return EngineVerdict("translate", True, "user-space binary translation; needs nothing of the host")
