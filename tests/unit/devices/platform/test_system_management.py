"""SMRAM's registers, the ways to an SMI, and what firmware and machine agree on."""

from __future__ import annotations

import struct

from sublet.devices.platform import i440fx, q35
from sublet.devices.platform.fw_cfg import FwCfg
from sublet.devices.platform.pirq import PirqRouter
from sublet.devices.platform.root_complex import RootComplexRegisters
from sublet.devices.platform.smi import APMC_ENABLE, GLOBAL_ENABLE, ApmPorts, SmiControl
from sublet.devices.platform.smi_features import SmiFeatures
from sublet.devices.platform.smram import NO_SMRAM, Smram
from sublet.testing import FakeGuestMemory

ENABLE, LOCK, OPEN = 1 << 3, 1 << 4, 1 << 6
MIB = 1 << 20


def make_mch(seen: list[Smram]) -> q35.MemoryController:
    return q35.MemoryController(lambda pam: None, lambda place: None, seen.append)


def test_smram_of_the_i440fx_opens_closes_and_locks() -> None:
    """Intel 290549, SMRAM: D_LCK clears D_OPEN and makes the register read-only until reset."""
    seen: list[Smram] = []
    bridge = i440fx.HostBridge(lambda pam: None, seen.append)
    bridge.config_write(i440fx.SMRAM, 1, ENABLE | OPEN)
    bridge.config_write(i440fx.SMRAM, 1, ENABLE | LOCK | OPEN)
    bridge.config_write(i440fx.SMRAM, 1, OPEN)
    assert [(smram.low, smram.opened) for smram in seen] == [(True, True), (True, False)]
    assert bridge.config_read(i440fx.SMRAM, 1) == ENABLE | LOCK | 2
    bridge.reset()
    assert seen[-1] == NO_SMRAM
    bridge.config_write(i440fx.SMRAM, 1, ENABLE)
    assert seen[-1].low


def test_tseg_has_the_sizes_of_esmramc() -> None:
    seen: list[Smram] = []
    mch = make_mch(seen)
    mch.config_write(q35.SMRAM, 1, ENABLE)
    for code, size in enumerate((MIB, 2 * MIB, 8 * MIB, 16 * MIB)):
        mch.config_write(q35.EXTENDED_SMRAM, 1, code << 1 | 1)
        assert seen[-1].tseg_size == size
    mch.config_write(q35.EXTENDED_SMRAM, 1, 1 << 7)
    assert (seen[-1].low, seen[-1].high, seen[-1].tseg_size) == (False, True, 0)


def test_the_extended_size_is_told_when_asked_for() -> None:
    mch = make_mch([])
    assert mch.config_read(q35.TSEG_MEBIBYTES, 2) == 0
    mch.config_write(q35.TSEG_MEBIBYTES, 2, 0xFFFF)
    assert mch.config_read(q35.TSEG_MEBIBYTES, 2) == 16


def test_the_lock_holds_esmramc_too_and_crosses_a_saved_state() -> None:
    seen: list[Smram] = []
    mch = make_mch(seen)
    mch.config_write(q35.EXTENDED_SMRAM, 1, 1)
    mch.config_write(q35.SMRAM, 1, ENABLE | LOCK)
    mch.config_write(q35.EXTENDED_SMRAM, 1, 0)
    copy = make_mch(restored := [])
    copy.load_state(mch.save_state())
    copy.config_write(q35.EXTENDED_SMRAM, 1, 0)
    copy.config_write(q35.SMRAM, 1, 0)
    assert seen[-1] == restored[-1] == Smram(low=True, high=False, opened=False, tseg_size=MIB)


def test_the_global_smi_enable_of_ich9_can_be_locked() -> None:
    """Intel 316972, GEN_PMCON_1 bit 4."""
    smi = SmiControl()
    wiring = RootComplexRegisters(lambda: None)
    lpc = q35.LpcBridge(PirqRouter(wiring.pirq_of, {}, 8), lambda base: None, smi, wiring, lambda base: None)
    assert not smi.take_command()
    smi.pio_write(0, 4, GLOBAL_ENABLE | APMC_ENABLE)
    lpc.config_write(q35.GENERAL_PM_CONFIGURATION, 2, q35.SMI_LOCK)
    lpc.config_write(q35.GENERAL_PM_CONFIGURATION, 2, 0)
    smi.pio_write(0, 4, APMC_ENABLE)
    assert smi.take_command()
    assert smi.pio_read(4, 4) == APMC_ENABLE
    smi.pio_write(4, 4, APMC_ENABLE)
    smi.pio_write(0, 4, 0)
    assert smi.pio_read(4, 4) == 0
    assert not smi.take_command()


def test_the_piix4_raises_smis_once_it_is_told_to() -> None:
    power = i440fx.PowerManagement(lambda base: None, has_smi=True)
    assert not power.take_command()
    power.config_write(i440fx.DEVICE_ACTIVITY_B, 4, i440fx.APMC_ENABLE)
    assert power.take_command()
    without = i440fx.PowerManagement(lambda base: None, has_smi=False)
    without.config_write(i440fx.DEVICE_ACTIVITY_B, 4, 0)
    assert without.config_read(i440fx.DEVICE_ACTIVITY_B, 4) == i440fx.APMC_ENABLE


def test_the_apm_ports_keep_both_bytes() -> None:
    commands: list[int] = []
    ports = ApmPorts(commands.append)
    ports.pio_write(1, 1, 0x12)
    ports.pio_write(0, 2, 0x3456)
    ports.pio_write(1, 1, 0x99)
    assert commands == [0x56]
    assert ports.pio_read(0, 2) == 0x9956


def test_firmware_gets_the_features_that_the_machine_has() -> None:
    for requested, agreed in ((1, True), (0, True), (3, False)):
        features, fw_cfg = SmiFeatures(), FwCfg(memory := FakeGuestMemory(0x1000))
        features.add_files(fw_cfg)
        memory.write(0x100, struct.pack("<Q", requested))
        memory.write(0, struct.pack(">IIQ", 0x21 << 16 | 8 | 16, 8, 0x100))
        fw_cfg.pio_write(8, 4, 0)
        fw_cfg.pio_write(0, 2, 0x22)
        assert fw_cfg.pio_read(1, 1) == agreed
        assert features.broadcast == (requested == 1)
