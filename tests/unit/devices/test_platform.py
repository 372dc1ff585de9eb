"""Power button, sleep, reset and panic ports."""

from __future__ import annotations

import pytest

from sublet.devices.platform import AcpiPm, Gpe0, PvPanic, ResetRegister
from sublet.testing import RecordingIrqLine


class Calls:
    """Counts calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def make_pm() -> tuple[AcpiPm, RecordingIrqLine, Calls]:
    sci, poweroff = RecordingIrqLine(), Calls()
    return AcpiPm(sci, poweroff), sci, poweroff


def test_power_button_raises_sci_once_enabled_and_clears_on_one() -> None:
    pm, sci, _ = make_pm()
    pm.press_power_button()
    assert not sci.level
    pm.pio_write(2, 2, 0x100)
    assert sci.level
    assert pm.pio_read(0, 2) == 0x100
    pm.pio_write(0, 2, 0x100)
    assert not sci.level


def test_s5_powers_off_and_other_states_do_not() -> None:
    pm, _, poweroff = make_pm()
    pm.pio_write(4, 2, 1 << 13 | 3 << 10)
    assert poweroff.count == 0
    pm.pio_write(4, 2, 1 << 13 | 5 << 10)
    assert poweroff.count == 1
    assert pm.pio_read(4, 2) == 5 << 10 | 1  # SLP_EN reads zero, SCI_EN one
    pm.pio_write(4, 2, 1 << 13)
    assert poweroff.count == 2, "soft off, as the BIOS's APM and OVMF write it"


def test_byte_write_of_the_upper_control_half_powers_off() -> None:
    pm, _, poweroff = make_pm()
    pm.pio_write(5, 1, 1 << 5 | 5 << 2)
    assert poweroff.count == 1


@pytest.mark.parametrize(("offset", "size"), [(0, 4), (1, 1), (3, 2), (5, 4)])
def test_odd_accesses_stay_inside(offset: int, size: int) -> None:
    pm, _, _ = make_pm()
    pm.pio_write(offset, size, 0)
    assert 0 <= pm.pio_read(offset, size) < 1 << (8 * size)


def test_pm_state_round_trip() -> None:
    pm, _, _ = make_pm()
    pm.pio_write(2, 2, 0x100)
    pm.press_power_button()
    other, sci, _ = make_pm()
    other.load_state(pm.save_state())
    assert sci.level
    other.reset()
    assert not sci.level


def test_gpe0_status_clears_on_one() -> None:
    gpe = Gpe0()
    gpe.pio_write(2, 2, 0xFFFF)
    assert gpe.pio_read(0, 4) == 0xFFFF_0000
    gpe.reset()
    assert gpe.pio_read(0, 4) == 0


def test_reset_needs_a_rising_edge() -> None:
    resets = Calls()
    register = ResetRegister(resets)
    register.pio_write(0, 1, 0x02)
    assert resets.count == 0
    register.pio_write(0, 1, 0x06)
    register.pio_write(0, 1, 0x06)
    assert resets.count == 1
    assert register.pio_read(0, 1) == 0x02


def test_pvpanic_reports_panic_only() -> None:
    panics = Calls()
    device = PvPanic(panics)
    assert device.pio_read(0, 1) == 3
    device.pio_write(0, 1, 2)
    assert panics.count == 0
    device.pio_write(0, 1, 1)
    assert panics.count == 1
