"""Time that stands still until told."""

from __future__ import annotations


class FakeClock:
    """Nanoseconds that advance only by ``advance`` (``hw.Clock``)."""

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        """The time."""
        return self._now_ns

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_ns += round(seconds * 1_000_000_000)
