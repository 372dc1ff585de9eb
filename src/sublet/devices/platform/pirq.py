"""PIRQ routing: PCI interrupt pins to the chipset's request lines, and these to interrupt inputs.

Reference: Intel PIIX3 (290550) §2.2.8 "PIRQRC[A:D] PIRQx Route Control Registers"; Intel ICH9 (316972)
§13.1.16 "PIRQ[n]_ROUT".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from sublet.hw import IrqLine

ROUTE_DISABLED: Final = 0x80
ROUTE_WRITABLE: Final = 0x8F
ROUTABLE_IRQS: Final = (3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15)


class PirqRouter:
    """Combines pins into PIRQs and drives what each is routed to. Any thread.

    Args:
        pirq_of: Which PIRQ a slot's pin (0 for INTA) is wired to; `rewire` tells of another answer.
        isa_lines: The inputs 0 to 15 that a PIRQ can be routed to, by number.
        fixed_lines: For each PIRQ, an I/O APIC input that it drives besides, if the chipset has those.
        count: PIRQs: 4 or 8.
    """

    def __init__(
        self,
        pirq_of: Callable[[int, int], int],
        isa_lines: Mapping[int, IrqLine],
        count: int,
        fixed_lines: Sequence[IrqLine] = (),
    ) -> None:
        self.pirq_of = pirq_of
        self._isa_lines = isa_lines
        self._fixed_lines = fixed_lines
        self._lock = threading.Lock()
        self._raised: set[tuple[int, int]] = set()  # slots and pins
        self._asserted = [False] * count
        self._routes = [ROUTE_DISABLED] * count
        self._isa_levels: dict[int, bool] = dict.fromkeys(isa_lines, False)

    @property
    def routes(self) -> tuple[int, ...]:
        """The route control register of each PIRQ."""
        return tuple(self._routes)

    def pin(self, slot: int, pin: int) -> Callable[[bool], None]:
        """The wire of one pin."""
        return lambda level: self._set((slot, pin), level)

    def rewire(self) -> None:
        """Ask anew which PIRQs the pins drive."""
        with self._lock:
            self._drive()

    def route(self, routes: Sequence[int]) -> None:
        """Take the route control registers over, bit 7 for disabled, else the IRQ in bits 0 to 3."""
        with self._lock:
            self._routes = list(routes)
            self._drive_isa()

    def isa_irq(self, pirq: int) -> int | None:
        """The ISA interrupt that a PIRQ is routed to."""
        route = self._routes[pirq]
        irq = route & 0xF
        return irq if not route & ROUTE_DISABLED and irq in self._isa_lines else None

    def _set(self, pin: tuple[int, int], level: bool) -> None:
        with self._lock:
            if level == (pin in self._raised):
                return
            if level:
                self._raised.add(pin)
            else:
                self._raised.remove(pin)
            self._drive()

    def _drive(self) -> None:
        wanted = {self.pirq_of(*pin) for pin in self._raised}
        before, self._asserted = self._asserted, [pirq in wanted for pirq in range(len(self._asserted))]
        if before == self._asserted:
            return
        for line, was, level in zip(self._fixed_lines, before, self._asserted, strict=False):
            if was != level:
                line.set_level(level)
        self._drive_isa()

    def _drive_isa(self) -> None:
        wanted = dict.fromkeys(self._isa_lines, False)
        for pirq, asserted in enumerate(self._asserted):
            irq = self.isa_irq(pirq)
            if asserted and irq is not None:
                wanted[irq] = True
        for irq, level in wanted.items():
            if level != self._isa_levels[irq]:
                self._isa_levels[irq] = level
                self._isa_lines[irq].set_level(level)
