"""A machine in S3: nothing runs, RAM stays, and a power button, a key or the clock's alarm wakes it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

from sublet.devices.platform.acpi_pm import STS_PWRBTN, STS_RTC
from sublet.machine.control import Control, Request

_REGISTER_B: Final = 0x0B
_ALARM_ENABLED: Final = 1 << 5
_BINARY: Final = 1 << 2
_ALARM_REGISTERS: Final = (5, 3, 1)
"""Hours, minutes, seconds."""
_ANY: Final = 0xC0
"""An alarm byte from here on fits every time."""
_PERIOD_S: Final = 0.2


class Alarm:
    """The real-time clock's alarm, in UTC (Motorola MC146818A "Time, Calendar, and Alarm Locations").

    Args:
        cmos: All 128 bytes, as the guest left them.
    """

    def __init__(self, cmos: bytes) -> None:
        control = cmos[_REGISTER_B]
        self._enabled = bool(control & _ALARM_ENABLED)
        decode = int if control & _BINARY else _from_bcd
        self._wanted = [None if cmos[at] >= _ANY else decode(cmos[at]) for at in _ALARM_REGISTERS]

    def is_due(self, now: datetime) -> bool:
        """Whether it goes off in this second."""
        fits = zip(self._wanted, (now.hour, now.minute, now.second), strict=True)
        return self._enabled and all(wanted in (None, value) for wanted, value in fits)


def _from_bcd(value: int) -> int:
    return (value >> 4) * 10 + (value & 0xF)


def sleep_until_woken(control: Control, cmos: bytes) -> tuple[Request, int]:
    """Wait in S3.

    Args:
        control: Where requests come in.
        cmos: What the guest left in the CMOS RAM, with its alarm.

    Returns:
        `Request.WAKE` and the status bit of the reason, or another request that ends the machine.
    """
    alarm, last = Alarm(cmos), time.time()
    while True:
        message = control.wait(_PERIOD_S)
        now = time.time()
        # Every second since the last look, as the host may not have run this thread for a while.
        if any(alarm.is_due(datetime.fromtimestamp(second, UTC)) for second in _seconds(last, now)):
            return Request.WAKE, STS_RTC
        last = now
        if message is None:
            continue
        if message.request is Request.POWER_BUTTON:
            return Request.WAKE, STS_PWRBTN
        return message.request, 0


def _seconds(after: float, until: float) -> range:
    """Whole seconds that have begun, a day of them at most."""
    return range(max(int(after) + 1, int(until) - 86400), int(until) + 1)
