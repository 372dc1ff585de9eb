"""What a probe found out about an engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineVerdict:
    """Whether an engine can run real guests on this host, and why."""

    name: str
    """``kvm`` or ``translate``."""
    usable: bool
    reason: str
    """A sentence without a full stop; for an unusable engine, what is in the way."""
    remedy: str = ""
    """What the user can do about it, a sentence, or empty."""
