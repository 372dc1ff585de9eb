"""i440FX and Q35: attribute maps, interrupt routing, registers that firmware places."""

from __future__ import annotations

from sublet.devices.platform import i440fx, q35
from sublet.devices.platform.pam import PAM_SEGMENTS
from sublet.devices.platform.pirq import ROUTABLE_IRQS, PirqRouter
from sublet.devices.platform.pm_block import Part, PmBlock, PmTimer
from sublet.devices.platform.root_complex import RootComplexRegisters
from sublet.testing import FakeClock, RecordingIrqLine


def make_lines() -> dict[int, RecordingIrqLine]:
    return {irq: RecordingIrqLine() for irq in ROUTABLE_IRQS}


def test_attributes_of_each_segment() -> None:
    """Intel 290549 §3.2.17: PAM0's high nibble is the BIOS area; low nibbles come first in the others."""
    seen: list[tuple[int, ...]] = []
    bridge = i440fx.HostBridge(seen.append, lambda smram: None)
    bridge.config_write(i440fx.PAM, 1, 0x3F)
    bridge.config_write(i440fx.PAM + 1, 1, 0x12)
    by_start = dict(zip((start for start, _ in PAM_SEGMENTS), seen[-1], strict=True))
    assert by_start[0xF0000] == 3
    assert (by_start[0xC0000], by_start[0xC4000], by_start[0xC8000]) == (2, 1, 0)
    assert bridge.config_read(i440fx.PAM, 1) == 0x30
    bridge.reset()
    assert set(seen[-1]) == {0}


def test_a_pin_reaches_the_interrupt_that_its_pirq_is_routed_to() -> None:
    lines = make_lines()
    router = PirqRouter(i440fx.pirq_of, lines, i440fx.PIRQ_COUNT)
    bridge = i440fx.IsaBridge(router)
    pin = router.pin(3, 0)
    pin(True)
    assert not any(line.level for line in lines.values())
    bridge.config_write(i440fx.PIRQ_ROUTES + i440fx.pirq_of(3, 0), 1, 11)
    assert lines[11].level
    bridge.config_write(i440fx.PIRQ_ROUTES + i440fx.pirq_of(3, 0), 1, 0x80)
    assert not lines[11].level


def test_two_pirqs_share_an_interrupt() -> None:
    lines = make_lines()
    router = PirqRouter(i440fx.pirq_of, lines, i440fx.PIRQ_COUNT)
    router.route([10, 10, 11, 11])
    first, second = router.pin(1, 0), router.pin(2, 0)
    first(True)
    second(True)
    first(False)
    assert lines[10].level
    second(False)
    assert not lines[10].level


def test_interrupts_that_no_pirq_can_reach_are_none() -> None:
    """Intel 290550 §2.2.8: 0, 1, 2, 8 and 13 are reserved."""
    router = PirqRouter(i440fx.pirq_of, make_lines(), i440fx.PIRQ_COUNT)
    router.route([0, 8, 13, 0x8B])
    assert [router.isa_irq(pirq) for pirq in range(4)] == [None] * 4


def test_ich9_drives_the_io_apic_whether_or_not_a_pirq_is_routed() -> None:
    lines, fixed = make_lines(), [RecordingIrqLine() for _ in range(q35.PIRQ_COUNT)]
    wiring = RootComplexRegisters(lambda: router.rewire())
    router = PirqRouter(wiring.pirq_of, lines, q35.PIRQ_COUNT, fixed)
    router.pin(2, 0)(True)
    assert [line.level for line in fixed] == [pirq == 6 for pirq in range(8)]
    assert not any(line.level for line in lines.values())


def test_the_chipsets_own_pins_are_wired_by_its_registers() -> None:
    """Intel 316972 §10.1.37 "D31IR": INTA drives PIRQA until the register says PIRQD."""
    fixed = [RecordingIrqLine() for _ in range(q35.PIRQ_COUNT)]
    wiring = RootComplexRegisters(lambda: router.rewire())
    router = PirqRouter(wiring.pirq_of, {}, q35.PIRQ_COUNT, fixed)
    assert wiring.mmio_read(0x3140, 4) == 0x3210
    router.pin(31, 0)(True)
    assert [line.level for line in fixed].index(True) == 0
    wiring.mmio_write(0x3140, 2, 0x3213)
    assert [pirq for pirq, line in enumerate(fixed) if line.level] == [3]
    copy = RootComplexRegisters(lambda: None)
    copy.load_state(wiring.save_state())
    assert [copy.pirq_of(31, pin) for pin in range(4)] == [3, 1, 2, 3]
    wiring.reset()
    assert [pirq for pirq, line in enumerate(fixed) if line.level] == [0]


def test_chipset_configuration_registers_keep_what_firmware_leaves() -> None:
    """As QEMU 10 shows them behind RCBA: no routes but the functions', GCS with NO_REBOOT, the rest zero."""
    places: list[int | None] = []
    registers = RootComplexRegisters(lambda: None)
    lpc = q35.LpcBridge(
        PirqRouter(registers.pirq_of, {}, 8), lambda base: None, None, registers, places.append
    )
    lpc.config_write(q35.ROOT_COMPLEX_BASE, 4, 0xFED1_C001)
    routes = [registers.mmio_read(offset, 4) for offset in range(0x3140, 0x3154, 4)]
    assert routes == [0x3210, 0x3210_3210, 0x3210, 0x3210, 0x3210]
    assert registers.mmio_read(0x3410, 4) == 0x20
    registers.mmio_write(0x3404, 4, 0x80)
    registers.mmio_write(0x3FFF, 8, 0x1122_3344_5566_7788)
    assert (registers.mmio_read(0x3404, 8), registers.mmio_read(0x3FFF, 8)) == (0x80, 0x88)
    lpc.reset()
    assert places == [0xFED1_C000, None]
    assert registers.mmio_read(0x3404, 4) == 0


def test_the_acpi_registers_decode_where_firmware_enables_them() -> None:
    places: list[int | None] = []
    power = i440fx.PowerManagement(places.append, has_smi=False)
    power.config_write(i440fx.PM_BASE, 4, 0xB001)
    assert places == []
    power.config_write(i440fx.PM_MISC, 1, 1)
    power.config_write(i440fx.PM_BASE, 4, 0x0601)
    power.reset()
    assert places == [0xB000, 0x600, None]
    lpc_places: list[int | None] = []
    wiring = RootComplexRegisters(lambda: None)
    lpc = q35.LpcBridge(
        PirqRouter(wiring.pirq_of, make_lines(), 8), lpc_places.append, None, wiring, lambda base: None
    )
    lpc.config_write(q35.PM_BASE, 4, 0x601)
    lpc.config_write(q35.ACPI_CONTROL, 1, 0x80)
    assert lpc_places == [0x600]


def test_extended_configuration_space_moves() -> None:
    places: list[tuple[int, int] | None] = []
    mch = q35.MemoryController(lambda pam: None, places.append, lambda smram: None)
    mch.config_write(q35.PCIEXBAR, 4, 0xB000_0001)
    mch.config_write(q35.PCIEXBAR, 4, 0xB000_0000 | 1 << 1 | 1)
    mch.config_write(q35.PCIEXBAR, 4, 0xB000_0000 | 3 << 1 | 1)
    assert places == [(0xB000_0000, 256 << 20), (0xB000_0000, 128 << 20), None]


def test_the_register_block_finds_its_parts() -> None:
    clock = FakeClock()
    block = PmBlock([Part(8, 4, PmTimer(clock))])
    clock.advance(1)
    assert block.pio_read(8, 4) == 3_579_545
    assert block.pio_read(9, 1) == 3_579_545 >> 8 & 0xFF
    assert block.pio_read(0x20, 4) == 0
