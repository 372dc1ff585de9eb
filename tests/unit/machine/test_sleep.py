"""S3: what wakes a sleeping machine, and what is there when it wakes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sublet.devices.platform.acpi_pm import STS_PWRBTN, STS_RTC, STS_WAKE, AcpiPm
from sublet.machine.config import MachineConfig
from sublet.machine.control import Control, Request
from sublet.machine.nonvolatile import Nonvolatile
from sublet.machine.sleep import Alarm, sleep_until_woken
from sublet.testing import RecordingIrqLine

NOON = datetime(2026, 1, 2, 12, 34, 56, tzinfo=UTC)


def cmos_with_alarm(hour: int, minute: int, second: int, control: int = 0x22) -> bytes:
    cmos = bytearray(128)
    cmos[1], cmos[3], cmos[5], cmos[0x0B] = second, minute, hour, control
    return bytes(cmos)


def test_the_alarm_goes_off_in_its_second() -> None:
    alarm = Alarm(cmos_with_alarm(0x12, 0x34, 0x56))
    assert alarm.is_due(NOON)
    assert not alarm.is_due(NOON + timedelta(seconds=1))
    assert Alarm(cmos_with_alarm(12, 34, 56, control=0x26)).is_due(NOON), "binary"
    assert Alarm(cmos_with_alarm(0xFF, 0xC0, 0x56)).is_due(NOON), "any hour and minute"
    assert not Alarm(cmos_with_alarm(0x12, 0x34, 0x56, control=2)).is_due(NOON), "not enabled"


def test_an_alarm_wakes_the_machine() -> None:
    every_second = cmos_with_alarm(0xFF, 0xFF, 0xFF)
    assert sleep_until_woken(Control(), every_second) == (Request.WAKE, STS_RTC)


@pytest.mark.parametrize(
    ("request_", "woken"),
    [
        (Request.POWER_BUTTON, (Request.WAKE, STS_PWRBTN)),
        (Request.WAKE, (Request.WAKE, 0)),
        (Request.LEFT, (Request.LEFT, 0)),
    ],
)
def test_what_else_ends_the_sleep(request_: Request, woken: tuple[Request, int]) -> None:
    control = Control()
    control.post(request_)
    assert sleep_until_woken(control, bytes(128)) == woken


def test_firmware_finds_the_reason_for_its_start_in_the_cmos() -> None:
    """SeaBIOS and OVMF: FEh in the shutdown status byte means S3."""
    kept = Nonvolatile(MachineConfig())
    kept.keep_cmos(bytes(128))
    assert dict(kept.cmos())[0x0F] == 0
    kept.wake_reason = STS_RTC
    assert dict(kept.cmos())[0x0F] == 0xFE


def test_the_guest_sees_what_woke_it() -> None:
    slept: list[str] = []
    power = AcpiPm(RecordingIrqLine(), lambda: slept.append("off"), lambda: slept.append("s3"))
    power.pio_write(4, 2, 1 << 10 | 1 << 13)
    power.pio_write(4, 2, 5 << 10 | 1 << 13)
    assert slept == ["s3", "off"]
    power.wake(STS_RTC)
    assert power.pio_read(0, 2) == STS_WAKE | STS_RTC
    AcpiPm(RecordingIrqLine(), lambda: None).pio_write(4, 2, 1 << 10 | 1 << 13)


def test_the_chipset_s_registers_are_kept_over_several_sleeps() -> None:
    """SeaBIOS leaves PCIEXBAR at 0 when it wakes the machine."""
    kept = Nonvolatile(MachineConfig())
    kept.keep_chipset([0xB000_0001, 10])
    kept.keep_chipset([0, 11])
    assert kept.chipset == (0xB000_0001, 11)
