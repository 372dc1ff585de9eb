"""Interrupt sinks that remember."""

from __future__ import annotations


class RecordingIrqLine:
    """A line that keeps its level and every change of it (``hw.IrqLine``)."""

    def __init__(self) -> None:
        self.level = False
        self.changes: list[bool] = []

    def set_level(self, level: bool) -> None:
        """Remember."""
        if level != self.level:
            self.level = level
            self.changes.append(level)

    @property
    def edges(self) -> int:
        """Rising edges so far."""
        return sum(self.changes)


class RecordingMsiSink:
    """Keeps (address, data) of every message (``hw.MsiSink``)."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, int]] = []

    def signal(self, address: int, data: int) -> None:
        """Remember."""
        self.messages.append((address, data))
