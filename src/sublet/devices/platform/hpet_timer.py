"""One comparator of an HPET: its registers, when it matches the main counter, and what it owes.

Reference: IA-PC HPET Specification 1.0a §2.3.8 "Timer N Configuration and Capabilities Register", §2.3.9
"Timer N Comparator Value Register".
"""

from __future__ import annotations

from typing import Any, Final

LEVEL: Final = 1 << 1
"""Tn_INT_TYPE_CNF."""
ENABLE: Final = 1 << 2
"""Tn_INT_ENB_CNF."""
PERIODIC: Final = 1 << 3
"""Tn_TYPE_CNF."""
PERIODIC_CAPABLE: Final = 1 << 4
WIDE_CAPABLE: Final = 1 << 5
SET_VALUE: Final = 1 << 6
"""Tn_VAL_SET_CNF: the next write of a periodic comparator sets the match, too. Reads as zero."""
NARROW: Final = 1 << 8
"""Tn_32MODE_CNF."""
ROUTE_SHIFT: Final = 9
ROUTE_MASK: Final = 0x1F << ROUTE_SHIFT
CAPABLE_INPUTS_SHIFT: Final = 32
_KEPT: Final = LEVEL | ENABLE | PERIODIC | NARROW

TICK_NS: Final = 10
LATE_TICKS: Final = 1 << 20
"""How far behind the counter a comparator may be when it is written (10 ms)."""
MAXIMUM_OWED: Final = 1000
_SHORTEST_NS: Final = 100_000
"""Interrupts of a periodic timer come no closer than this."""

_WIDE: Final = (1 << 64) - 1
_ALL_32: Final = (1 << 32) - 1


class Comparator:
    """A timer of 64 bits, or 32 where the guest wants, one-shot or periodic. Its owner holds a lock.

    Counter values are those of a main counter that does not wrap. An expired periodic timer owes an
    interrupt for every period, so that a late host loses none: what is owed follows at twice the rate.

    Deviation: a comparator that is written up to `LATE_TICKS` behind the counter matches at once. Hardware
    takes less time for the write than a virtual machine, and would match when the counter comes round.

    Args:
        inputs: I/O APIC inputs that it can drive, a bit each.
    """

    def __init__(self, inputs: int) -> None:
        self._inputs = inputs
        self.reset()

    def reset(self) -> None:
        """One-shot, off, the comparator as far away as it can be."""
        self.config = 0
        self._set_value = False
        self._value = _WIDE
        self._period = 0
        self._due: int | None = None
        self.owed = 0
        self.earliest_ns = 0
        """When the next interrupt may come."""

    # What the registers say

    @property
    def route(self) -> int:
        """The I/O APIC input that it drives."""
        return (self.config & ROUTE_MASK) >> ROUTE_SHIFT

    @property
    def mask(self) -> int:
        """The bits of the counter that it compares."""
        return _ALL_32 if self.config & NARROW else _WIDE

    @property
    def _step(self) -> int:
        """Ticks from one match to the next: a period, or what the counter takes to come round."""
        period = self._period & self.mask if self.config & PERIODIC else 0
        return period or self.mask + 1

    @property
    def repeats(self) -> bool:
        """Whether it matches by itself again soon."""
        return bool(self.config & PERIODIC and self._period & self.mask)

    def read_config(self) -> int:
        """The configuration and capabilities register."""
        return self.config | PERIODIC_CAPABLE | WIDE_CAPABLE | self._inputs << CAPABLE_INPUTS_SHIFT

    def read_value(self) -> int:
        """The comparator register: the match before which the counter is."""
        return self._value & self.mask

    # What the guest writes

    def write_config(self, bits: int, mask: int, counter: int | None) -> None:
        """Change the bits in ``mask``; a route that it does not have stays what it was.

        In 32-bit mode the upper halves of comparator and period are lost.

        Args:
            counter: The main counter, None while it is halted.
        """
        before = self.config
        wanted = before & ~mask | bits & mask
        route = wanted & ROUTE_MASK
        if not self._inputs >> (route >> ROUTE_SHIFT) & 1:
            route = before & ROUTE_MASK
        self.config = wanted & _KEPT | route
        if mask & SET_VALUE:
            self._set_value = bool(bits & SET_VALUE)
        self._value &= self.mask
        self._period &= self.mask
        if (before ^ self.config) & (PERIODIC | NARROW):
            self.arm(counter)

    def write_value(self, bits: int, mask: int, counter: int | None) -> None:
        """Write the comparator: a one-shot's match; a periodic timer's period, and its match if so set."""
        mask &= self.mask
        if self.config & PERIODIC:
            self._period = self._period & ~mask | bits & mask
        if not self.config & PERIODIC or self._set_value:
            self._set_value = False
            self._value = self._value & ~mask | bits & mask
            self.arm(counter, tolerance=LATE_TICKS)

    # Matching

    def arm(self, counter: int | None, tolerance: int = 0) -> None:
        """Work out the next match anew; what was owed is forgotten.

        Args:
            counter: The main counter, None while it is halted.
            tolerance: Ticks that the comparator may be behind to match at once.
        """
        self.owed = self.earliest_ns = 0
        self._due = None
        if counter is None:
            return
        late = counter - self._value & self.mask
        distance = self._value - counter & self.mask
        self._due = counter if late <= tolerance else counter + distance

    def advance(self, counter: int) -> None:
        """Count the matches up to ``counter``."""
        if self._due is None or counter < self._due:
            return
        step = self._step
        matches = (counter - self._due) // step + 1
        self._due += matches * step
        if self.repeats:
            self._value = self._due & self.mask
        catches_up = self.repeats and step * TICK_NS >= _SHORTEST_NS
        self.owed = min(self.owed + matches, MAXIMUM_OWED if catches_up else 1)

    def take(self, now_ns: int) -> bool:
        """Whether to interrupt now for a match that was counted; it is settled then."""
        if not self.owed or now_ns < self.earliest_ns:
            return False
        self.owed -= 1
        wait_ns = max(self._step * TICK_NS // 2, _SHORTEST_NS) if self.repeats else 0
        self.earliest_ns = now_ns + wait_ns
        return True

    def next_ns(self, counter: int, now_ns: int) -> int | None:
        """When there is something to `take`; None for never."""
        if self.owed:
            return self.earliest_ns
        if self._due is None:
            return None
        return max(now_ns + (self._due - counter) * TICK_NS, self.earliest_ns)

    # Lifecycle

    def save_state(self, counter: int, now_ns: int) -> dict[str, Any]:
        """Registers, and the rest relative to the counter and the time."""
        return {
            "config": self.config,
            "set_value": self._set_value,
            "value": self._value,
            "period": self._period,
            "due_in": None if self._due is None else self._due - counter,
            "owed": self.owed,
            "earliest_in_ns": max(self.earliest_ns - now_ns, 0),
        }

    def load_state(self, state: dict[str, Any], counter: int, now_ns: int) -> None:
        """Inverse of ``save_state``."""
        self.config, self._set_value = state["config"], state["set_value"]
        self._value, self._period, self.owed = state["value"], state["period"], state["owed"]
        self._due = None if state["due_in"] is None else counter + state["due_in"]
        self.earliest_ns = now_ns + state["earliest_in_ns"]
