"""pvpanic: one port by which a guest says that its kernel has panicked.

Reference: QEMU "pvpanic device" specification (docs/specs/pvpanic), ISA variant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PVPANIC_PORT = 0x505
PVPANIC_PORT_COUNT = 1
EVENT_PANICKED = 1
EVENT_CRASH_LOADED = 2
SUPPORTED_EVENTS = EVENT_PANICKED | EVENT_CRASH_LOADED


class PvPanic:
    """The port reads as the events it knows; a written event is reported.

    Args:
        on_panic: Called for PANICKED, on the vCPU's thread. CRASH_LOADED (a kdump kernel takes over)
            leaves the machine running.
    """

    def __init__(self, on_panic: Callable[[], None]) -> None:
        self._on_panic = on_panic

    def pio_read(self, offset: int, size: int) -> int:
        """The supported events."""
        return SUPPORTED_EVENTS

    def pio_write(self, offset: int, size: int, value: int) -> None:
        """Unknown events are ignored."""
        if value & EVENT_PANICKED:
            self._on_panic()

    def reset(self) -> None:
        """Nothing to reset: the device has no state."""

    def save_state(self) -> dict[str, Any]:
        """No state."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """No state."""
