"""What shows from 768 KiB to 1 MiB: while it changes, and when the machine has slept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sublet.devices.platform.acpi_pm import STS_RTC
from sublet.engine import Vm, open_engine
from sublet.machine import MachineConfig
from sublet.machine import memory_map as mm
from sublet.machine.control import Control
from sublet.machine.memory import DeviceMemory, Placement, SystemMemory
from sublet.machine.nonvolatile import Nonvolatile
from sublet.machine.power_cycle import PowerCycle
from sublet.machine.shadow_ram import ShadowRam

ROM_SIZE = 0x20000
F_SEGMENT = 0xF0000
PAM0, READS_RAM, READS_AND_WRITES_RAM = 0x59, 0x10, 0x30


class WatchedMemory(SystemMemory):
    """Notes how the F segment shows after each change of memslots: None, read-only or not."""

    def __init__(self, vm: Vm) -> None:
        self.watched_vm = vm
        self.seen: list[bool | None] = []
        super().__init__(vm, mm.layout(16, "pc"))

    def change(self, gone: Sequence[int], new: Sequence[Placement]) -> list[int]:
        slots = super().change(gone, new)
        shown = [slot for slot in self.watched_vm.memory.slots() if slot[1] <= F_SEGMENT < slot[1] + slot[2]]
        self.seen.append(shown[0][3] if shown else None)
        return slots


def test_a_segment_is_never_without_memory_while_it_changes() -> None:
    memory = WatchedMemory(open_engine("translate").create_vm())
    memory.open_legacy_hole()
    shadow = ShadowRam(memory, DeviceMemory(memory, ROM_SIZE))
    memory.seen.clear()
    for bits in (3, 1, 3, 0):
        shadow.apply((0,) * 12 + (bits,))
        shadow.apply((1,) * 12 + (bits,))
    assert memory.seen == [False, False, True, True, False, False, True, True]


@contextmanager
def powered(config: MachineConfig, kept: Nonvolatile) -> Iterator[PowerCycle]:
    cycle = PowerCycle(open_engine("translate"), config, lambda data: None, Control(), kept)
    try:
        yield cycle
    finally:
        cycle.close()


def write_pam0(cycle: PowerCycle, value: int) -> None:
    ports = cycle.board.buses.ports
    ports.write(mm.PCI_CONFIG_PORT, 4, 1 << 31 | PAM0 & ~3)
    ports.write(mm.PCI_CONFIG_PORT + 4 + PAM0 % 4, 1, value)


@pytest.fixture
def config(tmp_path: Path) -> MachineConfig:
    """A machine whose firmware is a file of zeroes, never started."""
    rom = tmp_path / "rom"
    rom.write_bytes(bytes(ROM_SIZE))
    return MachineConfig(machine="pc", firmware=rom, memory_mib=16)


@pytest.mark.parametrize(("wake_reason", "kept_value"), [(None, READS_RAM), (STS_RTC, READS_AND_WRITES_RAM)])
def test_the_attribute_map_stays_as_the_post_left_it(
    config: MachineConfig, wake_reason: int | None, kept_value: int
) -> None:
    """SeaBIOS that wakes a system write-protects by stale variables: the next wake-up must not find that."""
    kept = Nonvolatile(config)
    with powered(config, kept) as cycle:
        write_pam0(cycle, READS_AND_WRITES_RAM)
    kept.wake_reason = wake_reason
    with powered(config, kept) as cycle:
        write_pam0(cycle, READS_RAM)
    assert kept.shadow is not None
    assert kept.shadow[0] == kept_value
