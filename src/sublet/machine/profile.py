"""Where a guest spent its time, counted by place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

from sublet.engine import Vcpu

SAMPLES_A_SECOND: Final = 1000
"""Of each vCPU's processor time."""


class Place(NamedTuple):
    """A block of the guest's code."""

    address: int
    """Linear address of its first instruction."""
    address_space: int
    """Page-table base of a user program; 0 in the kernel."""
    privilege: int
    """CPL, 0 to 3."""
    translated: bool
    """False: the engine's own code was carrying out an instruction there."""


class Profile:
    """Adds up samples over vCPUs and boots."""

    def __init__(self) -> None:
        self._counts: Counter[Place] = Counter()

    def add(self, vcpu: Vcpu) -> None:
        """Take over what was sampled of a vCPU that stands still."""
        for address, address_space, privilege, translated, count in vcpu.take_profile():
            self._counts[Place(address, address_space, privilege, translated)] += count

    def counts(self) -> Mapping[Place, int]:
        """Samples by place."""
        return self._counts
